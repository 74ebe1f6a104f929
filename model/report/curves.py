"""All runs' curves in one picture: a row a data set, losses on the left, validation accuracy on the right."""

from pathlib import Path
from typing import Any

from msmlp.model.report.figures import colours, paper, save
from msmlp.model.report.run import Run
from msmlp.model.report.tables import labels


def by_data(runs: list[Run]) -> dict[str, list[tuple[str, Run]]]:
    """(label, run) by data set: accuracies on other classes are not to be compared."""
    groups: dict[str, list[tuple[str, Run]]] = {}
    for label, run in zip(labels(runs), runs, strict=True):
        data = run.data or f"unknown data, {run.network.get('classes', '?')} classes"
        groups.setdefault(data, []).append((label, run))
    return groups


def plot_curves(runs: list[Run], path: Path) -> None:
    """Draw what metrics.jsonl has of every run; earlier exits are thin, the last one is thick."""
    groups = by_data(runs)
    figure = paper(12, 0.6 + 4.2 * len(groups))
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for (left, right), (data, group) in zip(grid, groups.items(), strict=True):
        for (label, run), colour in zip(group, colours(len(group)), strict=True):
            _draw(left, right, label, run, colour)
        left.set(xlabel="epoch", ylabel="training loss", title=data)
        right.set(xlabel="epoch", ylabel="validation accuracy, %", title="exits: thin, the last one thick")
        for axes in (left, right):
            axes.grid(alpha=0.3)
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    save(figure, path)


def _draw(left: Any, right: Any, label: str, run: Run, colour: Any) -> None:
    epochs = [row.epoch for row in run.curve]
    left.plot(epochs, [row.loss for row in run.curve], color=colour, linewidth=1)
    exits = len(run.exits)
    said = label if run.curve else f"{label} (no curve)"
    said += "" if run.finished else f" ({run.epochs_done} of {run.epochs} epochs)"
    for k in range(exits):
        last = k == exits - 1
        accuracies = [100 * row.val_accuracy[k] for row in run.curve if k < len(row.val_accuracy)]
        style = {"linewidth": 2.0} if last else {"linewidth": 0.8, "alpha": 0.6}
        right.plot(epochs[: len(accuracies)], accuracies, color=colour, label=said if last else None, **style)
