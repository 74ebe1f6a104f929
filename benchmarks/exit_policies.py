"""The exit policies against each other on the validation images, at equal cost.

    python -m benchmarks.exit_policies --weights weights/cifar10-s --data DATA > docs/results/cifar10-s.policies.json

`in_sample` is what the joint frontier reaches on the images it was solved on. `held_out` is cross-fitted: temperatures,
parameters of the policy and thresholds all come from the other folds. `gain` is the difference to the largest softmax
entry on the same images, with its standard error and 95 % interval.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.staged import StagedBackend
from msmlp.model.calibration.crossfit import folds_of, held_out, refitted
from msmlp.model.calibration.fit import Fit
from msmlp.model.calibration.joint import joint_frontier
from msmlp.model.calibration.settings import best_within
from msmlp.model.datasets import load_dataset
from msmlp.model.held_out import validation_images
from msmlp.model.offline import run_every_exit
from msmlp.model.policies import FITTED
from msmlp.model.scores import EXIT_POLICIES
from msmlp.model.weights import load_calibration, load_weights

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
    backend = StagedBackend(weights, BackendSettings(device, capacity=256, max_batch=256))
    probabilities = run_every_exit(backend, images.pixels).probabilities
    gflops = np.array(weights.manifest.gflops_cumulative)
    dearest = max(point.mean_gflops for point in calibration.points if point.risk is None)
    budgets = np.linspace(gflops[0], dearest, BUDGETS).tolist()

    folds, policies, held_right = folds_of(images.identities), {}, {}
    for name in (*EXIT_POLICIES, *FITTED):
        everything = Fit.of(name, probabilities, images.labels)
        frontier = joint_frontier(everything.table(probabilities, images.labels, gflops))
        held = held_out(refitted(name, probabilities, images.labels, gflops, folds), budgets)
        held_right[name], spent = held.right().astype(float), gflops[held.left - 1]
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


if __name__ == "__main__":
    main()
