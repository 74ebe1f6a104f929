"""Accuracy against GFLOPs: every exit and every frontier of all runs in one picture, a panel a data set."""

from pathlib import Path
from typing import Any

from msmlp.model.report.curves import by_data
from msmlp.model.report.figures import TEACHER_MARK, colours, paper, save
from msmlp.model.report.run import Run


def plot_scatter(runs: list[Run], path: Path) -> None:
    """Crosses where all images run to one exit, dots on a line for operating points, a star for a teacher."""
    groups = by_data(runs)
    figure = paper(10, 0.6 + 4.8 * len(groups))
    grid = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (data, group) in zip(grid, groups.items(), strict=True):
        for (label, run), colour in zip(group, colours(len(group)), strict=True):
            _draw(axes, label, run, colour)
        axes.set(xscale="log", xlabel="mean GFLOPs an image", ylabel="validation accuracy, %", title=data)
        _plain_numbers(axes)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", title="x an exit\n● its frontier")
    save(figure, path)


def _plain_numbers(axes: Any) -> None:
    """Ticks at 1, 2 and 5 of every decade, written as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw(axes: Any, label: str, run: Run, colour: Any) -> None:
    said = label if run.finished else f"{label} (unfinished)"
    exits = [(exit.gflops, 100 * exit.accuracy) for exit in run.exits if exit.gflops is not None]
    mark = TEACHER_MARK if run.kind == "teacher" else "x"
    costs, accuracies = [cost for cost, _ in exits], [accuracy for _, accuracy in exits]
    axes.plot(costs, accuracies, mark, color=colour, markersize=9 if mark != "x" else 6, label=said)
    points = run.operating_points
    axes.plot(
        [point.mean_gflops for point in points],
        [100 * point.expected_accuracy for point in points],
        "o-",
        color=colour,
        markersize=2.5,
        linewidth=0.9,
    )
