"""The joint frontier: all thresholds chosen together, over a grid of them.

Going on past exit k changes what an image counts as right by correct[k+1] - correct[k] and costs one stage more. So the
number right and the cost of every cell of the grid are sums of such steps over the images that go on, which are
cumulative sums over the images' bins: O(N + cells), exact on the grid.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.settings import Floats, Setting, Table, Thresholds, pareto, thinned
from msmlp.model.exits import leaves

BINS = 300
"""Thresholds an exit, equally many images apart; with few images, one between any two of them."""

ROUNDS = 6
"""Coordinate descent (more than three exits) ends after so many rounds, or when nothing improves."""


def joint_frontier(table: Table, also: Iterable[Thresholds] = ()) -> list[Setting]:
    """The Pareto set over a grid that holds the scores' quantiles and the thresholds `also`, cheapest first.

    Up to three exits the whole grid is looked at; beyond, `also` and the single exits are improved one threshold at a
    time. Either way no thresholds in `also` are better on this table than what is returned.
    """
    also = list(also)
    grids = [_grid(table.scores[:, k], [t[k] for t in also]) for k in range(table.exits - 1)]
    if table.exits <= 3:
        return settings_on(table, grids)
    return _descend(table, grids, also)


def settings_on(table: Table, grids: list[Floats]) -> list[Setting]:
    """The Pareto set of all combinations of the thresholds in `grids`, one ascending list an exit but the last."""
    right, cost = surface(table, grids)
    images = len(table.scores)
    found = []
    for cell in _pareto_cells(right.ravel(), cost.ravel()):
        index = np.unravel_index(cell, right.shape)
        thresholds = tuple(float(grid[i]) for grid, i in zip(grids, index, strict=True))
        found.append(Setting(float(cost.flat[cell] / images), float(right.flat[cell] / images), thresholds))
    return found


def surface(table: Table, grids: list[Floats]) -> tuple[Floats, Floats]:
    """Images right and total cost of every combination of thresholds, each [G1, ..., G(K-1)]."""
    shape = tuple(len(grid) for grid in grids)
    images = len(table.scores)
    right = np.full(shape, float(table.correct[:, 0].sum()))
    cost = np.full(shape, images * float(table.costs[0]))
    bins = np.zeros((0, images), dtype=np.int64)
    for k, grid in enumerate(grids):
        # An image leaves at its first `bin` thresholds and goes on from there.
        bins = np.vstack([bins, leaves(table.scores[:, k, None], grid).sum(axis=1)])
        goes_on = (bins < np.array(shape[: k + 1])[:, None]).all(axis=0)
        cells = np.ravel_multi_index(tuple(bins[:, goes_on]), shape[: k + 1])
        gain = table.correct[goes_on, k + 1].astype(np.float64) - table.correct[goes_on, k]
        step = float(table.costs[k + 1] - table.costs[k])
        to_full = (..., *[None] * (len(grids) - 1 - k))
        right += _cumulative(cells, gain, shape[: k + 1])[to_full]
        cost += step * _cumulative(cells, np.ones(len(cells)), shape[: k + 1])[to_full]
    return right, cost


def _cumulative(cells: NDArray[np.int64], weights: Floats, shape: tuple[int, ...]) -> Floats:
    sums: Floats = np.bincount(cells, weights, minlength=int(np.prod(shape))).astype(np.float64).reshape(shape)
    for axis in range(len(shape)):
        sums = np.cumsum(sums, axis=axis)
    return sums


def _pareto_cells(right: Floats, cost: Floats) -> NDArray[np.int64]:
    order = np.lexsort((-right, cost))
    best_before = np.concatenate([[-1.0], np.maximum.accumulate(right[order])[:-1]])
    kept: NDArray[np.int64] = order[right[order] > best_before]
    return kept


def _grid(scores: NDArray[np.float32], also: list[float]) -> Floats:
    """Ascending thresholds: always, between quantiles of `scores` [N], `also`, never."""
    ascending = np.sort(scores.astype(np.float64))
    cuts = np.unique(np.linspace(0, len(scores), min(BINS, len(scores)) + 1).round().astype(int))[1:-1]
    # A softmax can round to 1, and a threshold of exactly 1 would mean "never".
    middles = np.minimum((ascending[cuts - 1] + ascending[cuts]) / 2, np.nextafter(1.0, 0.0))
    return np.unique(np.concatenate([[0.0], middles, also, [1.0]]))


def _descend(table: Table, grids: list[Floats], also: list[Thresholds]) -> list[Setting]:
    ends = [(1.0,) * k + (0.0,) * (table.exits - 1 - k) for k in range(table.exits)]
    found = pareto(s for t in [*ends, *also] for s in settings_on(table, [np.array([x]) for x in t]))
    for _ in range(ROUNDS):
        before = found
        for k, grid in enumerate(grids):
            lines = [[np.array([x]) for x in s.thresholds] for s in thinned(found)]
            for line in lines:
                line[k] = grid
            found = pareto([*found, *(s for line in lines for s in settings_on(table, line))])
        if found == before:
            break
    return found
