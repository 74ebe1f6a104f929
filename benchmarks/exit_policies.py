"""The exit policies against each other on the validation images, at equal cost.

    python -m benchmarks.exit_policies --weights weights/cifar10-s --data DATA > docs/results/cifar10-s.policies.json

`in_sample` is what the joint frontier reaches on the images it was solved on. `held_out` is cross-fitted, parameters of
the policy and thresholds alike: for each fold they come from the other folds. `gain` is the difference to the largest
softmax entry on the same images, with its standard error and 95 % interval.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model.backends.choose import torch_backend
from model.calibration.crossfit import folds_of
from model.calibration.fitting import fit_policy
from model.calibration.held_out import validation_images
from model.calibration.joint import joint_frontier
from model.calibration.settings import Table, best_within
from model.datasets import load_dataset
from model.exits import exit_of
from model.offline import Outputs, run_every_exit
from model.policies import FITTED, StagePolicy, run_policies, stage_policies
from model.scores import EXIT_POLICIES
from model.weights import load_calibration, load_weights

BUDGETS = 8
NORMAL_95 = 1.96
BASELINE = "max-probability"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/cifar10-s"))
    parser.add_argument("--data", type=Path, required=True, help="the data set of the training")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    sys.stdout.write(json.dumps(compare(options.weights, options.data, options.device), indent=1) + "\n")


def compare(folder: Path, data: Path, device: str) -> dict[str, Any]:
    """Every exit policy at the same budgets, from the cheapest exit to the most accurate point."""
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    images = validation_images(weights, load_dataset(data, weights.manifest.cascade.image_size))
    temperatures = calibration.file.temperatures
    backend = torch_backend(weights, temperatures=temperatures, device=device, capacity=256, max_batch=256)
    outputs = run_every_exit(backend, images.pixels)
    gflops = np.array(weights.manifest.gflops_cumulative)
    budgets = np.linspace(gflops[0], calibration.points[-1].mean_gflops, BUDGETS).tolist()

    folds, policies, held_right = folds_of(images.identities), {}, {}
    for name in (*EXIT_POLICIES, *FITTED):
        frontier = joint_frontier(table_of(name, outputs.probabilities, images.labels, gflops)[0])
        held_right[name], spent = held_out(name, outputs, images.labels, folds, gflops, budgets)
        gain = held_right[name] - held_right[BASELINE]
        mean, error = gain.mean(axis=1), gain.std(axis=1) / len(images) ** 0.5
        policies[name] = {
            "in_sample": [best_within(frontier, budget).accuracy for budget in budgets],
            "held_out": held_right[name].mean(axis=1).tolist(),
            "held_out_gflops": spent.mean(axis=1).tolist(),
            "gain": mean.tolist(),
            "gain_standard_error": error.tolist(),
            "gain_interval": np.stack([mean - NORMAL_95 * error, mean + NORMAL_95 * error], axis=1).tolist(),
        }
    return {
        "weights": str(folder),
        "data": str(data),
        "images": len(images),
        "temperatures": list(temperatures),
        "budgets_gflops": budgets,
        "policies": policies,
    }


def table_of(
    name: str, probabilities: Any, labels: Any, gflops: Any, policies: list[StagePolicy] | None = None
) -> tuple[Table, list[StagePolicy]]:
    """Scores and correctness under an exit policy, fitted to these images unless `policies` are given."""
    if policies is None:
        policies = stage_policies(name, fit_policy(name, probabilities, labels), probabilities.shape[1])
    answers, scores = run_policies(policies, probabilities)
    return Table(scores, answers.argmax(axis=2) == labels[:, None], gflops), policies


def held_out(
    name: str, outputs: Outputs, labels: Any, folds: Any, gflops: Any, budgets: list[float]
) -> tuple[Any, Any]:
    """Right or not, and GFLOPs spent, of every image at every budget [budgets, N], by what the other folds chose."""
    right, spent = np.zeros((2, len(budgets), len(labels)))
    for fold in np.unique(folds):
        held = folds == fold
        others, policies = table_of(name, outputs.probabilities[~held], labels[~held], gflops)
        table, _ = table_of(name, outputs.probabilities[held], labels[held], gflops, policies)
        frontier = joint_frontier(others)
        for row, budget in enumerate(budgets):
            left = exit_of(table.scores, np.array(best_within(frontier, budget).thresholds))
            right[row, held] = table.correct[np.arange(len(left)), left - 1]
            spent[row, held] = gflops[left - 1]
    return right, spent


if __name__ == "__main__":
    main()
