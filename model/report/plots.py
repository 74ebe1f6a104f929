"""The pictures of a model card: confusion matrix, reliability diagrams, frontier.

matplotlib is imported only to draw.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.frontier import NAMED
from msmlp.model.evaluate import BINS, Bins, bins_of, calibration_error
from msmlp.model.offline import Outputs
from msmlp.model.weights import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS_UP_TO = 20
"""With more classes than this, numbers in the cells would be too small to read."""

BAR = 0.92 / BINS
"""The width of a bin's bar."""


def paper(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that needs no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path, dpi: int = 110) -> None:
    """Write a PNG, with the same bytes every time."""
    figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def confusion_matrix(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How many images of class i were answered with class j, [classes, classes]."""
    counts = np.bincount(labels * classes + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """At most `count` mistakes as (class, answer, images), the most frequent first."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = [(int(place // len(matrix)), int(place % len(matrix))) for place in order]
    return [(i, j, int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def plot_confusion(matrix: NDArray[np.int64], classes: tuple[str, ...], title: str, path: Path) -> None:
    """Draw each row as shares of its class; small shares are darkened so that mistakes stay visible."""
    from matplotlib.colors import PowerNorm

    many = len(classes) > COUNTS_UP_TO
    side = 13 if many else 2.2 + 0.55 * len(classes)
    figure = paper(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    ticks, size = range(len(classes)), 5 if many else 9
    axes.set_xticks(ticks, classes, rotation=90, fontsize=size)
    axes.set_yticks(ticks, classes, fontsize=size)
    axes.set(xlabel="answer", ylabel="label", title=title)
    if not many:
        for i, j in np.argwhere(matrix):
            ink = "white" if shares[i, j] > 0.3 else "black"
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=ink, fontsize=8)
    save(figure, path)


def plot_reliability(outputs: Outputs, correct: NDArray[np.bool_], title: str, path: Path) -> None:
    """Draw the accuracy of each confidence bin next to the diagonal, and below it the bin's share of images."""
    exits = correct.shape[1]
    figure = paper(4 * exits + 0.4, 4.6)
    upper, lower = figure.subplots(
        2, exits, squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3, 1]}
    )
    for k in range(exits):
        _draw_bins(upper[k], lower[k], bins_of(outputs.probabilities[:, k].max(axis=1), correct[:, k]))
        upper[k].set_title(f"exit {k + 1}: ECE {calibration_error(outputs, correct, k):.3f}")
        lower[k].set_xlabel("confidence")
    upper[0].set_ylabel("accuracy")
    lower[0].set_ylabel("share of images")
    figure.suptitle(title)
    save(figure, path)


def _draw_bins(upper: Any, lower: Any, bins: Bins) -> None:
    upper.bar(bins.middle, bins.accuracy, BAR, color="tab:blue")
    upper.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    upper.plot(bins.confidence, bins.accuracy, "o", color="magenta", markersize=3)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.grid(alpha=0.3)
    lower.bar(bins.middle, bins.share, BAR, color="tab:gray")
    lower.grid(alpha=0.3)


def plot_frontier(name: str, calibration: Calibration, path: Path) -> None:
    """Draw the expected accuracy of the operating points of the weights `name` against their mean GFLOPs.

    Error bars are one standard error; crosses are single exits; thin lines are what each solver reached on the images
    it saw.
    """
    figure = paper(8, 5)
    axes = figure.subplots()
    for solver, reached in calibration.file.solvers.items():
        axes.plot(*zip(*reached, strict=True), linewidth=0.8, label=f"{solver}, on the images it saw")
    points = calibration.points
    axes.errorbar(
        [p.mean_gflops for p in points],
        [p.expected_accuracy for p in points],
        [p.standard_error for p in points],
        fmt="o",
        color="black",
        markersize=3,
        linewidth=0.8,
        label="operating points, held out, ± 1 s.e.",
    )
    for point in points:
        if point.name in NAMED:
            place = (point.mean_gflops, point.expected_accuracy)
            axes.annotate(point.name, place, xytext=(6, -14), textcoords="offset points")
    exits = _single_exits(calibration)
    axes.plot(*zip(*exits, strict=True), "x", color="magenta", label="every image to one exit")
    images = f"{calibration.file.images} validation images, exit policy {calibration.file.exit_policy}"
    axes.set(xlabel="mean GFLOPs per image", ylabel="accuracy", title=f"{name}: {images}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save(figure, path, dpi=120)


def _single_exits(calibration: Calibration) -> list[tuple[float, float]]:
    exits = len(calibration.file.temperatures)
    never = (1.0,) * (exits - 1)
    runs = [calibration.expect(never, k, k) for k in range(1, exits + 1)]
    return [(run.mean_cost, run.accuracy) for run in runs]
