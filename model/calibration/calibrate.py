"""`msmlp calibrate`: validation images through the serving backend, the frontier into the weights folder."""

from pathlib import Path

import numpy as np

from model.backends.torch import TorchBackend
from model.calibration.frontier import operating_points, solver_frontiers
from model.datasets import Dataset, Split, load_dataset
from model.datasets.dataset import split_digest
from model.errors import DataError, WeightsError
from model.offline import run_every_exit
from model.weights import OperatingPoint, Weights, load_weights, write_calibration


def calibrate(folder: Path, data: Path, device: str = "auto") -> list[OperatingPoint]:
    """Measure the validation images of `data` and write the calibration → its operating points.

    Raises:
        WeightsError: a damaged weights folder.
        DataError: not the validation images that training held out.
    """
    weights = load_weights(folder)
    dataset = load_dataset(data, weights.manifest.cascade.image_size)
    validation = validation_images(weights, dataset)
    return calibrate_on(weights, validation, device)


def calibrate_on(weights: Weights, validation: Split, device: str) -> list[OperatingPoint]:
    """The same on images already at hand."""
    backend = TorchBackend(weights, device=device, capacity=256, max_batch=256)
    outputs = run_every_exit(backend, validation.pixels)
    correct = outputs.predictions == validation.labels[:, None]
    frontiers = solver_frontiers(outputs.scores, correct, np.array(weights.manifest.gflops_cumulative))
    points = operating_points(frontiers)
    write_calibration(
        weights.folder,
        model_sha256=weights.sha256,
        scores=outputs.scores,
        correct=correct,
        points=points,
        solvers={name: [(p.mean_gflops, p.expected_accuracy) for p in own] for name, own in frontiers.items()},
        digest=split_digest(validation),
        device=backend.device,
    )
    return points


def validation_images(weights: Weights, dataset: Dataset) -> Split:
    """The images training held out, found again in `dataset`; DataError when they are others.

    Any other images may be ones the weights were trained on, and would flatter every figure.
    """
    check_classes(weights, dataset)
    held = weights.manifest.training.get("validation")
    if not isinstance(held, dict) or not {"seed", "images", "digest"} <= held.keys():
        raise WeightsError(f"the manifest of {weights.folder} does not say which images were held out in training")
    _, validation = dataset.train_and_validation(held["seed"])
    if split_digest(validation) != held["digest"]:
        raise DataError(
            f"the validation images of this data are not those held out in training "
            f"({len(validation)} images, digest {split_digest(validation)[:12]}; "
            f"the manifest has {held['images']}, {held['digest'][:12]}): use the data set of the training"
        )
    return validation


def check_classes(weights: Weights, dataset: Dataset) -> None:
    """DataError unless the data has the weights' classes, in their order."""
    if dataset.classes != weights.manifest.classes:
        odd = sorted(set(dataset.classes) ^ set(weights.manifest.classes))
        raise DataError(f"the data's classes are not the weights' classes: {', '.join(odd[:5]) or 'another order'}")
