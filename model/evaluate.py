"""One split of a data set through every exit: `msmlp evaluate`, and the numbers behind the card and the gallery."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.calibration.audit import exit_promise, point_promise
from msmlp.model.data import Dataset, Split
from msmlp.model.errors import DataError, OptionError
from msmlp.model.exits.rule import exit_of
from msmlp.model.imported import ImportedCascade
from msmlp.model.offline import (
    Outputs,
    audit_images,
    batch_of,
    check_classes,
    dataset_for,
    run_every_exit,
    validation_images,
)
from msmlp.model.shape import parts
from msmlp.model.text import has_own_name
from msmlp.model.weights import Calibration, Expectation, OperatingPoint, Weights, load_calibration, load_weights
from msmlp.model.weights.calibration import Promise, Table
from msmlp.model.weights.info import audit_record, no_audit

BINS = 15


@dataclass(frozen=True)
class Measured:
    """Images [N] of one split with the outputs of all K exits, through the backend and dtype that serve."""

    weights: Weights
    calibration: Calibration
    data: str
    split: str
    images: Split
    outputs: Outputs
    backend: str
    device: str
    dtype: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.weights.manifest.classes

    @property
    def gflops(self) -> NDArray[np.float64]:
        return np.array(self.weights.manifest.gflops_cumulative)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.outputs.correct(self.images.labels)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """An image as a stage sees it, [size, size, 3]; of several views the largest."""
        pixels: NDArray[np.uint8] = self.images.pixels[index]
        sizes = self.weights.manifest.cascade.shape.views
        size = max(sizes)
        return pixels[parts(sizes)[sizes.index(size)]].reshape(size, size, 3) if len(sizes) > 1 else pixels

    @property
    def table(self) -> Table:
        return Table(self.outputs.scores, self.correct, self.gflops)

    def exits(self) -> list[dict[str, Any]]:
        """Accuracy, cost and calibration error when every image runs to one exit, beside what was expected."""
        correct, gflops = self.correct, self.gflops
        return [
            {
                "exit": k + 1,
                "accuracy": float(correct[:, k].mean()),
                "balanced_accuracy": self.balanced_accuracy(correct[:, k]),
                "gflops": float(gflops[k]),
                "ece": calibration_error(self.outputs, correct, k),
                "promise": self._document(exit_promise(self.calibration.table, self.table, k + 1)),
            }
            for k in range(correct.shape[1])
        ]

    def _document(self, promise: Promise) -> dict[str, Any] | None:
        """None on the validation images, which made the promise."""
        return None if self.split == "val" else promise.model_dump()

    def by_class(self, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """The accuracy of every class that has images here, and their number; `right` [N] says which are right."""
        images = np.bincount(self.images.labels, minlength=len(self.classes)).tolist()
        hits = np.bincount(self.images.labels[right], minlength=len(self.classes)).tolist()
        return [
            {"class": name, "images": count, "accuracy": hit / count}
            for name, count, hit in zip(self.classes, images, hits, strict=True)
            if count
        ]

    def balanced_accuracy(self, right: NDArray[np.bool_]) -> float:
        """The mean accuracy of the classes that have images here, each counted alike."""
        return float(np.mean([row["accuracy"] for row in self.by_class(right)]))

    def point(self, name: str) -> OperatingPoint:
        return named(self.calibration, name)

    def named_points(self) -> list[OperatingPoint]:
        """The operating points with a name, such as `fast`, instead of a number."""
        return [point for point in self.calibration.points if has_own_name(point.name)]

    def reached(self, point: OperatingPoint) -> Expectation:
        return self.table.expect(point.thresholds)

    def promise(self, point: OperatingPoint) -> dict[str, Any] | None:
        """Expected minus reached accuracy of an operating point; None on the validation images."""
        return self._document(point_promise(point, self.table))

    def left(self, thresholds: tuple[float, ...]) -> NDArray[np.int64]:
        """The exit at which each image leaves with these thresholds, 1...K [N]."""
        return exit_of(self.outputs.scores, np.array(thresholds, dtype=float))

    def answers(self, thresholds: tuple[float, ...]) -> NDArray[np.int64]:
        """The label that each image gets with these thresholds [N]."""
        answers: NDArray[np.int64] = self.outputs.predictions[np.arange(len(self.images)), self.left(thresholds) - 1]
        return answers

    def right(self, point: OperatingPoint) -> NDArray[np.bool_]:
        """Which images an operating point gets right [N]."""
        right: NDArray[np.bool_] = self.answers(point.thresholds) == self.images.labels
        return right


def named(calibration: Calibration, name: str) -> OperatingPoint:
    """An operating point by name; OptionError lists the names."""
    for point in calibration.points:
        if point.name == name:
            return point
    known = ", ".join(point.name for point in calibration.points)
    raise OptionError("policy", f"{name!r} is not an operating point; expected one of {known}")


def evaluate(
    folder: Path,
    data: Path,
    split: str,
    device: str = "auto",
    dtype: str = "auto",
    backend: str | None = None,
    policy: str | None = None,
) -> dict[str, Any]:
    """What `msmlp evaluate --json` prints; `policy` names the operating point of `classes` (`balanced`, or else the
    last), all other arguments are those of `measure`."""
    if policy is not None:
        named(load_calibration(load_weights(folder)), policy)  # before anything takes long
    measured = measure(folder, data, split, device, dtype, backend)
    points = measured.calibration.points
    names = [point.name for point in points]
    shown = named(measured.calibration, policy or ("balanced" if "balanced" in names else names[-1]))
    classes = measured.by_class(measured.right(shown))
    return {
        "weights": str(folder),
        "data": str(data),
        "split": split,
        "images": len(measured.images),
        "backend": measured.backend,
        "device": measured.device,
        "dtype": measured.dtype,
        "exit_policy": measured.calibration.file.exit_policy,
        "exits": measured.exits(),
        "operating_points": [
            {
                "name": point.name,
                "thresholds": list(point.thresholds),
                "same_as": point.same_as,
                "accuracy": reached.accuracy,
                "balanced_accuracy": measured.balanced_accuracy(measured.right(point)),
                "mean_gflops": reached.mean_cost,
                "exit_share": list(reached.exit_share),
                "promise": measured.promise(point),
            }
            for point, reached in ((point, measured.reached(point)) for point in points)
        ],
        "policy": shown.name,
        "classes": classes,
        "classes_without_images": sorted(set(measured.classes) - {row["class"] for row in classes}),
        "audit": audit_record(measured.weights.manifest, measured.calibration),
    }


def measure(
    folder: Path, data: Path, split: str | None, device: str = "auto", dtype: str = "auto", backend: str | None = None
) -> Measured:
    """Run a split through every exit; None takes the test images if there are any, else audit or validation images.

    `backend` is torch or onnx; None is torch, and onnx for an imported cascade. `dtype` is auto or one that it knows.
    CallerError for a split, data or weights that do not fit.
    """
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    dataset = dataset_for(weights, data)
    fallback = "val" if calibration.file.audit is None else "audit"
    chosen = split or (fallback if dataset.test is None else "test")
    images = split_images(weights, dataset, chosen)
    batch = batch_of(weights.manifest.cascade)
    settings = BackendSettings(device=device, dtype=dtype, capacity=batch, max_batch=batch)
    default = "onnx" if isinstance(weights.manifest.cascade, ImportedCascade) else "torch"
    built = select_backend(weights, calibration, settings, backend or default).build()
    outputs = run_every_exit(built, images.pixels)
    return Measured(
        weights, calibration, dataset.source, chosen, images, outputs, built.name, built.device, built.dtype
    )


def split_images(weights: Weights, dataset: Dataset, split: str) -> Split:
    """The images of a split, checked against what the weights were trained with."""
    check_classes(weights, dataset)
    if split == "val":
        return validation_images(weights, dataset)
    if split == "audit":
        audit = audit_images(weights, dataset)
        if audit is None:
            raise OptionError("split", f"{weights.folder} has no audit set: {no_audit(weights.manifest.training)}")
        return audit
    if split != "test":
        raise OptionError("split", f"{split!r} is unknown; expected val, audit or test")
    if dataset.test is None:
        raise DataError(f"{dataset.source} has no test split")
    return dataset.test


class Bins(NamedTuple):
    """The bins of confidence that hold images [bins]: middle, share of all images, mean confidence and accuracy."""

    middle: NDArray[np.float64]
    share: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def bins_of(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> Bins:
    """The bins for confidences [N] and correctness [N]; confidence 1 belongs to the last bin."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = [(b, place == b) for b in np.unique(place).tolist()]
    rows = [((b + 0.5) / bins, here.mean(), confidence[here].mean(), correct[here].mean()) for b, here in found]
    return Bins(*np.array(rows, dtype=np.float64).T)


def calibration_error(outputs: Outputs, correct: NDArray[np.bool_], exit: int) -> float:
    """The expected calibration error of one exit (0-based): the mean gap between confidence and accuracy over bins."""
    bins = bins_of(outputs.probabilities[:, exit].max(axis=1), correct[:, exit])
    return float((np.abs(bins.confidence - bins.accuracy) * bins.share).sum())
