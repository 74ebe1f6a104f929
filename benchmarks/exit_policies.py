"""The exit policies against each other on the validation images, at equal cost.

    python -m benchmarks.exit_policies --weights weights/cifar10-xs --data DATA > docs/results/cifar10-xs.policies.json

`in_sample` is what the joint frontier reaches on the images it was solved on; `held_out` is cross-fitted, with its
difference to the largest softmax entry on the same images and that difference's standard error.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model.backends.choose import torch_backend
from model.calibration.crossfit import folds_of, held_out_exits
from model.calibration.held_out import validation_images
from model.calibration.joint import joint_frontier
from model.calibration.settings import Setting, Table, best_within
from model.datasets import load_dataset
from model.offline import Outputs, run_every_exit
from model.scores import EXIT_POLICIES
from model.weights import load_calibration, load_weights

BUDGETS = 8
BASELINE = "max-probability"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/cifar10-xs"))
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
    correct = outputs.predictions == images.labels[:, None]
    gflops = np.array(weights.manifest.gflops_cumulative)
    budgets = np.linspace(gflops[0], calibration.points[-1].mean_gflops, BUDGETS).tolist()

    folds, rows, policies = folds_of(images.identities), np.arange(len(images)), {}
    held_right = {}
    for name in EXIT_POLICIES:
        table = Table(scores_of(name, outputs), correct, gflops)
        frontier = joint_frontier(table)
        wanted = [Setting(budget, 0.0, frontier[0].thresholds) for budget in budgets]
        left = held_out_exits(table, wanted, folds)
        held_right[name] = correct[rows, left - 1].astype(float)
        gain = held_right[name] - held_right[BASELINE]
        policies[name] = {
            "in_sample": [best_within(frontier, budget).accuracy for budget in budgets],
            "held_out": held_right[name].mean(axis=1).tolist(),
            "held_out_gflops": gflops[left - 1].mean(axis=1).tolist(),
            "gain": gain.mean(axis=1).tolist(),
            "gain_standard_error": (gain.std(axis=1) / len(images) ** 0.5).tolist(),
        }
    return {
        "weights": str(folder),
        "data": str(data),
        "images": len(images),
        "temperatures": list(temperatures),
        "budgets_gflops": budgets,
        "policies": policies,
    }


def scores_of(policy: str, outputs: Outputs) -> Any:
    """The scores [N, K] that an exit policy gives."""
    stages = outputs.probabilities.shape[1]
    return np.stack([EXIT_POLICIES[policy](outputs.probabilities[:, k]) for k in range(stages)], axis=1)


if __name__ == "__main__":
    main()
