"""The outputs of every exit for every image of a split, for cards and galleries."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.data import Split, load_dataset
from msmlp.model.errors import OptionError
from msmlp.model.evaluate import split_images
from msmlp.model.exits.rule import exit_of
from msmlp.model.offline import Outputs, run_every_exit
from msmlp.model.weights import Calibration, OperatingPoint, Weights, load_calibration, load_weights


@dataclass(frozen=True)
class Measured:
    """Images [N] of one split with the outputs of all K exits, through the backend and dtype that serve."""

    weights: Weights
    calibration: Calibration
    data: str
    split: str
    images: Split
    outputs: Outputs
    device: str
    dtype: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.weights.manifest.classes

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each exit is right about each image, [N, K]."""
        right: NDArray[np.bool_] = self.outputs.predictions == self.images.labels[:, None]
        return right

    def point(self, name: str) -> OperatingPoint:
        """An operating point by name; OptionError lists the known ones."""
        for point in self.calibration.points:
            if point.name == name:
                return point
        known = ", ".join(point.name for point in self.calibration.points)
        known = ", ".join(point.name for point in self.calibration.points)
        raise OptionError("policy", f"{name!r} is not an operating point; expected one of {known}")

    def named_points(self) -> list[OperatingPoint]:
        """The operating points with a name, such as `fast`, not a number."""
        return [point for point in self.calibration.points if not re.fullmatch(r"p\d+", point.name)]

    def left(self, thresholds: tuple[float, ...]) -> NDArray[np.int64]:
        """The exit each image leaves at with these thresholds, 1...K [N]."""
        return exit_of(self.outputs.scores, np.array(thresholds, dtype=float))

    def answers(self, thresholds: tuple[float, ...]) -> NDArray[np.int64]:
        """The label of each image with these thresholds [N]."""
        answers: NDArray[np.int64] = self.outputs.predictions[np.arange(len(self.images)), self.left(thresholds) - 1]
        return answers


def measure(
    folder: Path, data: Path, split: Literal["val", "test"] | None, device: str = "auto", dtype: str = "auto"
) -> Measured:
    """Run a split through every exit; None takes the test images if there are any, else the validation images.

    Raises:
        CallerError: a split, data or weights that do not fit.
    """
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    dataset = load_dataset(data, weights.manifest.cascade.image_size)
    chosen = split or ("val" if dataset.test is None else "test")
    images = split_images(weights, dataset, chosen)
    settings = BackendSettings(device=device, dtype=dtype, capacity=256, max_batch=256)
    backend = select_backend(weights, calibration, settings, "torch").build()
    outputs = run_every_exit(backend, images.pixels)
    return Measured(weights, calibration, dataset.source, chosen, images, outputs, backend.device, backend.dtype)
