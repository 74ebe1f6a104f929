"""Easy and hard images of several classes, as in the paper's Figure 5, from the user's own data.

Easy images left at exit 1; hard ones needed the last exit, or the latest that any image needed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DataError, OptionError
from msmlp.model.evaluate import Measured
from msmlp.model.report.plots import paper, save

LEAST_CERTAIN = 0.1


@dataclass(frozen=True)
class Cut:
    """Named thresholds [K-1]."""

    name: str
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class Shown:
    """One image: its index in the split, its answer, its exit and the score there."""

    index: int
    answer: str
    right: bool
    exit: int
    score: float


@dataclass(frozen=True)
class GalleryRow:
    """A class: easy images, highest score first, and hard ones, lowest score at exit 1 first."""

    label: str
    easy: tuple[Shown, ...]
    hard: tuple[Shown, ...]

    def document(self) -> dict[str, Any]:
        return {"class": self.label, "easy": [vars(s) for s in self.easy], "hard": [vars(s) for s in self.hard]}


def telling_cut(measured: Measured, policy: str | None) -> Cut:
    """The thresholds of the operating point `policy`; None takes `balanced` or another point with both kinds of images.

    If no operating point has both kinds, the tenth of the images with the lowest score at exit 1 goes on.
    """
    if policy is not None:
        return Cut(policy, measured.point(policy).thresholds)
    exits = measured.correct.shape[1]
    points = sorted(measured.calibration.points, key=lambda point: point.name != "balanced")
    both = [cut for point in points if _rows(measured, cut := Cut(point.name, point.thresholds), 1)]
    if not both:
        limit = float(np.quantile(measured.outputs.scores[:, 0], LEAST_CERTAIN))
        return Cut("the lowest tenth of scores goes on", (limit,) + (1.0,) * (exits - 2))
    return next((cut for cut in both if measured.left(cut.thresholds).max() == exits), both[0])


def choose(measured: Measured, cut: Cut, classes: int, each: int) -> list[GalleryRow]:
    """At most `classes` rows of at most `each` images per kind: the fullest rows, in label order.

    OptionError for a cascade with one exit, DataError if no class has images of both kinds with these thresholds.
    """
    if measured.correct.shape[1] == 1:
        raise OptionError("weights", f"{measured.weights.folder} has one exit, so no image is easier than another")
    rows = _rows(measured, cut, each)
    if not rows:
        raise DataError(
            f"{cut.name}: no class has both images that leave at exit 1 and images that need a later exit; "
            "try another --policy"
        )
    fullest = sorted(rows, key=lambda row: -len(row.easy) - len(row.hard))[:classes]
    return [row for row in rows if row in fullest]


def _rows(measured: Measured, cut: Cut, each: int) -> list[GalleryRow]:
    left = measured.left(cut.thresholds)
    rows = [_row(measured, left, label, each) for label in range(len(measured.classes))]
    return [row for row in rows if row.easy and row.hard]


def _row(measured: Measured, left: NDArray[np.int64], label: int, each: int) -> GalleryRow:
    scores, last = measured.outputs.scores, max(int(left.max()), 2)
    here = measured.images.labels == label
    easy, hard = np.flatnonzero(here & (left == 1)), np.flatnonzero(here & (left == last))
    easy = easy[np.argsort(-scores[easy, 0], kind="stable")][:each]
    hard = hard[np.argsort(scores[hard, 0], kind="stable")][:each]

    def shown(index: int) -> Shown:
        exit = int(left[index])
        answer = int(measured.outputs.predictions[index, exit - 1])
        return Shown(index, measured.classes[answer], answer == label, exit, float(scores[index, exit - 1]))

    return GalleryRow(
        measured.classes[label], tuple(shown(i) for i in easy.tolist()), tuple(shown(i) for i in hard.tolist())
    )


def draw(rows: list[GalleryRow], measured: Measured, cut: Cut, path: Path) -> None:
    """Draw one row per class at the network's image size: easy images left, hard ones right, wrong answers in red."""
    each = max(max(len(row.easy), len(row.hard)) for row in rows)
    figure = paper(1.25 * (2 * each) + 1.4, 1.6 * len(rows) + 0.7)
    grid = figure.subplots(len(rows), 2 * each + 1, squeeze=False, width_ratios=[1] * each + [0.15] + [1] * each)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, places in zip(rows, grid, strict=True):
        style: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "weight": "bold"}
        places[0].text(-0.15, 0.5, _short(row.label), transform=places[0].transAxes, **style)
        for shown, axes in [*zip(row.easy, places, strict=False), *zip(row.hard, places[each + 1 :], strict=False)]:
            axes.imshow(measured.picture(shown.index), interpolation="nearest")
            said = f"{_short(shown.answer)}\nexit {shown.exit}: {shown.score:.2f}"
            style = {"ha": "center", "va": "top", "fontsize": 8, "color": "black" if shown.right else "red"}
            axes.text(0.5, -0.05, said, transform=axes.transAxes, **style)
    grid[0, 0].set_title("easy: left at exit 1", loc="left", fontsize=10)
    grid[0, each + 1].set_title(f"hard: needed exit {rows[0].hard[0].exit}", loc="left", fontsize=10)
    figure.suptitle(
        f"{measured.weights.manifest.name}, {cut.name}: {measured.split} images of {measured.data}; "
        "answer, exit and score below, wrong answers red",
        fontsize=9,
    )
    try:
        save(figure, path)
    except OSError as error:
        raise OptionError("out", f"{path} cannot be written ({error.strerror})") from None


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
