"""Figure 4, and the images of Figure 5."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.paper.claims import Estimate
from benchmarks.paper.curve import even_thresholds, thresholds_of_sets
from benchmarks.paper.measure import Result
from msmlp.model.evaluate import measure
from msmlp.model.exits.rule import exit_of
from msmlp.model.report.gallery import Cut, GalleryRow, Shown, draw
from msmlp.model.report.plots import paper, save
from msmlp.model.training.recipes import TrainOptions

ROWS, EACH = 4, 3
"""As in the paper: 24 images of four classes."""

Point = tuple[float, float]
"""Mean GFLOPs and accuracy."""


def curve(results: Sequence[Result], solver: str, costs: list[float]) -> list[Point]:
    """Each weight set on the test images, thresholds from the validation images: the mean over results (seeds)."""
    points = []
    for result in results:
        test = result.test.table(costs)
        reached = [test.expect(each) for each in thresholds_of_sets(solver, result.validation.table(costs))]
        points.append([(each.mean_cost, each.accuracy) for each in reached])
    return [(float(cost), float(right)) for cost, right in np.mean(points, axis=0)]


def plot(curves: dict[str, list[Point]], mixers: dict[str, tuple[float, Estimate]], title: str, path: Path) -> None:
    """Draw curves by name, and Mixers by name as points of GFLOPs and accuracy ± 1 s.e."""
    figure = paper(7, 4.5)
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1, label=name)
    for name, (cost, reached) in mixers.items():
        axes.errorbar([cost], [reached.mean], [reached.error], fmt="s", markersize=5, label=name)
    axes.set(xlabel="mean GFLOPs per image", ylabel="accuracy on test images", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    save(figure, path)


def easy_and_hard(result: Result, costs: list[float]) -> list[tuple[int, list[int], list[int]]]:
    """At most ROWS labels, each with EACH easy and EACH hard test images, all answered rightly.

    Easy images leave at exit 1, the surest first; hard ones at the last exit, those least sure at exit 1 first.
    """
    answers = result.test
    exits = exit_of(answers.scores, np.array(even_thresholds(result.validation.table(costs))))
    right = answers.correct[range(len(exits)), exits - 1]
    order = np.argsort(answers.scores[:, 0], kind="stable")
    rows = []
    for label in np.unique(answers.labels).tolist():
        here = right & (answers.labels == label)
        easy, hard = (order[(here & (exits == exit))[order]] for exit in (1, answers.scores.shape[1]))
        if min(len(easy), len(hard)) >= EACH:
            rows.append((len(hard), label, easy[::-1][:EACH].tolist(), hard[:EACH].tolist()))
    rows.sort(key=lambda row: (-row[0], row[1]))
    return [(label, easy, hard) for _, label, easy, hard in rows[:ROWS]]


def contact_sheet(options: TrainOptions, result: Result, costs: list[float], path: Path) -> None:
    """Draw the images of Figure 5. They belong to the data set: not for a repository."""
    measured = measure(options.out, options.data, "test", options.device, "float32")

    def shown(label: int, index: int, exit: int) -> Shown:
        return Shown(index, measured.classes[label], True, exit, float(result.test.scores[index, exit - 1]))

    last = result.test.scores.shape[1]
    rows = [
        GalleryRow(
            measured.classes[label],
            tuple(shown(label, index, 1) for index in easy),
            tuple(shown(label, index, last) for index in hard),
        )
        for label, easy, hard in easy_and_hard(result, costs)
    ]
    if rows:
        draw(rows, measured, Cut("Figure 5", even_thresholds(result.validation.table(costs))), path)
