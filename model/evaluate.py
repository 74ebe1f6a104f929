"""`msmlp evaluate`: accuracy, cost and calibration error of every exit and every operating point."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.data import Dataset, Split, load_dataset
from msmlp.model.errors import DataError, OptionError
from msmlp.model.offline import Outputs, check_classes, run_every_exit, validation_images
from msmlp.model.weights import Weights, load_calibration, load_weights
from msmlp.model.weights.calibration import expectation


def evaluate(
    folder: Path, data: Path, split: str, device: str = "auto", dtype: str = "auto", backend: str = "torch"
) -> dict[str, Any]:
    """What `msmlp evaluate --json` prints, measured with the backend and dtype that serve.

    Args:
        folder: a calibrated weights folder.
        data: the data set.
        split: `val` or `test`.
        device: auto, cpu or cuda.
        dtype: auto or what the backend knows (model/backends/settings.py).
        backend: torch or onnx.

    Raises:
        CallerError: a split, data or weights that do not fit.
    """
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    images = split_images(weights, load_dataset(data, weights.manifest.cascade.image_size), split)
    settings = BackendSettings(device=device, dtype=dtype, capacity=256, max_batch=256)
    built = select_backend(weights, calibration, settings, backend).build()
    outputs = run_every_exit(built, images.pixels)
    correct = outputs.predictions == images.labels[:, None]
    gflops = np.array(weights.manifest.gflops_cumulative)
    points = []
    for point in calibration.points:
        got = expectation(outputs.scores, correct, gflops, np.array(point.thresholds))
        points.append(
            {
                "name": point.name,
                "thresholds": list(point.thresholds),
                "accuracy": got.accuracy,
                "mean_gflops": got.mean_gflops,
                "exit_share": list(got.exit_share),
            }
        )
    return {
        "weights": str(folder),
        "data": str(data),
        "split": split,
        "images": len(images),
        "backend": built.name,
        "device": built.device,
        "dtype": built.dtype,
        "exit_policy": calibration.file.exit_policy,
        "exits": [
            {
                "exit": k + 1,
                "accuracy": float(correct[:, k].mean()),
                "gflops": float(gflops[k]),
                "ece": calibration_error(outputs, correct, k),
            }
            for k in range(built.stages)
        ],
        "operating_points": points,
    }


def split_images(weights: Weights, dataset: Dataset, split: str) -> Split:
    """The images of a split, checked against what the weights were trained with."""
    check_classes(weights, dataset)
    if split == "val":
        return validation_images(weights, dataset)
    if split != "test":
        raise OptionError("split", f"{split!r} is not one of val, test")
    if dataset.test is None:
        raise DataError(f"{dataset.source} has no test split")
    return dataset.test


def calibration_error(outputs: Outputs, correct: NDArray[np.bool_], exit: int, bins: int = 15) -> float:
    """Expected calibration error of one exit (0-based): mean gap of confidence and accuracy over equal bins."""
    confidence = outputs.probabilities[:, exit].max(axis=1)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[place == b].mean() - correct[place == b, exit].mean()) * (place == b).mean()
        for b in np.unique(place)
    ]
    return float(np.sum(gaps))
