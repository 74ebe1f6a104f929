"""Which class is taken for which."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msmlp.model.report.figures import paper, save

COUNTS_UP_TO = 20
"""With more classes than this, numbers in the cells would be too small to read."""


def confusion_matrix(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How many images of class i were called class j, [classes, classes]."""
    counts = np.bincount(labels * classes + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """(class, taken for, images), the most frequent mistakes first; none that was never made."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = [(int(place // len(matrix)), int(place % len(matrix))) for place in order]
    return [(i, j, int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def plot_confusion(matrix: NDArray[np.int64], classes: tuple[str, ...], title: str, path: Path) -> None:
    """Draw each row as shares of its class, mistakes darkened so that they are seen beside the diagonal."""
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
