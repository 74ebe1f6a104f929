"""The exit policies against each other on the validation images, at equal cost.

    python -m benchmarks.exit_policies --weights weights/cifar10-s --data DATA > docs/results/cifar10-s.policies.json

`in_sample` is what the joint frontier reaches on the images it was solved on. `held_out` is cross-fitted: temperatures,
parameters of the policy and thresholds all come from the other folds. `gain` is the difference to the largest softmax
entry on the same images, with its standard error and 95 % interval.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.backends.choose import torch_backend
from model.calibration.crossfit import folds_of
from model.calibration.fitting import fit_policy
from model.calibration.held_out import validation_images
from model.calibration.joint import joint_frontier
from model.calibration.settings import Table, best_within
from model.calibration.temperature import fit_temperatures, log_probabilities
from model.datasets import load_dataset
from model.exits import exit_of
from model.offline import run_every_exit
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
    backend = torch_backend(weights, device=device, capacity=256, max_batch=256)
    probabilities = run_every_exit(backend, images.pixels).probabilities
    gflops = np.array(weights.manifest.gflops_cumulative)
    dearest = max(point.mean_gflops for point in calibration.points if point.risk is None)
    budgets = np.linspace(gflops[0], dearest, BUDGETS).tolist()

    folds, policies, held_right = folds_of(images.identities), {}, {}
    for name in (*EXIT_POLICIES, *FITTED):
        everything = Fit.of(name, probabilities, images.labels)
        frontier = joint_frontier(everything.table(probabilities, images.labels, gflops))
        held_right[name], spent = held_out(name, probabilities, images.labels, folds, gflops, budgets)
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
        "temperatures": list(everything.temperatures),
        "budgets_gflops": budgets,
        "policies": policies,
    }


@dataclass(frozen=True)
class Fit:
    """All that is fitted to images beside thresholds: temperatures, and the parameters of the policy."""

    temperatures: tuple[float, ...]
    policies: list[StagePolicy]

    @classmethod
    def of(cls, name: str, probabilities: Any, labels: Any) -> "Fit":
        """Fit an exit policy to probabilities [N, K, classes] and labels [N]."""
        temperatures = fit_temperatures(probabilities, labels)
        parameters = fit_policy(name, tempered(probabilities, temperatures), labels)
        return cls(temperatures, stage_policies(name, parameters, probabilities.shape[1]))

    def table(self, probabilities: Any, labels: Any, gflops: Any) -> Table:
        """Scores and correctness of images, these or others."""
        answers, scores = run_policies(self.policies, tempered(probabilities, self.temperatures))
        return Table(scores, answers.argmax(axis=2) == labels[:, None], gflops)


def tempered(probabilities: Any, temperatures: tuple[float, ...]) -> Any:
    """Probabilities [N, K, classes] at temperature 1 → at one temperature an exit."""
    logits = log_probabilities(probabilities) / np.array(temperatures)[:, None]
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def held_out(
    name: str, probabilities: Any, labels: Any, folds: Any, gflops: Any, budgets: list[float]
) -> tuple[Any, Any]:
    """Right or not, and GFLOPs spent, of every image at every budget [budgets, N], by what the other folds chose."""
    right, spent = np.zeros((2, len(budgets), len(labels)))
    for fold in np.unique(folds):
        held = folds == fold
        fit = Fit.of(name, probabilities[~held], labels[~held])
        frontier = joint_frontier(fit.table(probabilities[~held], labels[~held], gflops))
        table = fit.table(probabilities[held], labels[held], gflops)
        for row, budget in enumerate(budgets):
            left = exit_of(table.scores, np.array(best_within(frontier, budget).thresholds))
            right[row, held] = table.correct[np.arange(len(left)), left - 1]
            spent[row, held] = gflops[left - 1]
    return right, spent


if __name__ == "__main__":
    main()
