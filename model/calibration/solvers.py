"""Solvers: thresholds from the share of images that should leave at each exit, and the joint frontier."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import leaves
from msmlp.model.weights.calibration import Table

Floats = NDArray[np.float64]
Scores = NDArray[np.floating]
Solver = Callable[[Scores, Floats], Floats]
"""(scores [N, K], shares [K] that sum to 1) → thresholds [K - 1]"""
Thresholds = tuple[float, ...]

NEVER, ALWAYS = 1.0, 0.0

LEVELS = 40
"""Equally spaced costs at which a frontier is sampled."""

BINS = 300
"""Thresholds per exit in the joint search, equally many images apart; with few images, one between any two."""

ROUNDS = 6
"""Coordinate descent (beyond three exits) ends after this many rounds, or when nothing improves."""


class ThresholdSetting(NamedTuple):
    """Thresholds [K - 1] with their mean cost and accuracy on the table they were found on."""

    cost: float
    accuracy: float
    thresholds: Thresholds


def pareto(settings: Iterable[ThresholdSetting]) -> list[ThresholdSetting]:
    """The settings that no other beats in both cost and accuracy, cheapest first."""
    kept: list[ThresholdSetting] = []
    for setting in sorted(settings, key=lambda s: (s.cost, -s.accuracy, s.thresholds)):
        if not kept or setting.accuracy > kept[-1].accuracy:
            kept.append(setting)
    return kept


def best_within(frontier: list[ThresholdSetting], budget: float) -> ThresholdSetting:
    """The most accurate setting that costs at most `budget`; or the cheapest if none does."""
    # Sums in another order may differ in the last digits.
    return [frontier[0], *(s for s in frontier if s.cost <= budget * (1 + 1e-9))][-1]


def thinned(frontier: list[ThresholdSetting], levels: int = LEVELS) -> list[ThresholdSetting]:
    """The best setting at each of `levels` equally spaced costs, with the cheapest and the most accurate."""
    budgets = np.linspace(frontier[0].cost, frontier[-1].cost, levels)
    return list(dict.fromkeys(best_within(frontier, budget) for budget in budgets))


def survivor_conditional(scores: Scores, shares: Floats) -> Floats:
    """The corrected Algorithm 1: each threshold comes from the images that have not left yet.

    Every exit but the last gets its share, to within one group of equal scores.
    """
    images, exits = scores.shape
    thresholds = np.full(exits - 1, NEVER)
    alive = np.ones(images, dtype=bool)
    for k in range(exits - 1):
        own = scores[alive, k].astype(np.float64)
        thresholds[k] = _between(np.sort(own)[::-1], int(np.floor(images * shares[k] + 1e-9)))
        alive &= ~leaves(scores[:, k], thresholds[k])
    return thresholds


def algorithm_1(scores: Scores, shares: Floats) -> Floats:
    """The paper's Algorithm 1 as its text means it: in descending order, but from all images at every exit."""
    images = len(scores)
    return np.array(
        [
            _between(np.sort(scores[:, k].astype(np.float64))[::-1], int(np.floor(images * share + 1e-9)))
            for k, share in enumerate(shares[:-1])
        ],
        dtype=np.float64,
    )


def algorithm_1_literal(scores: Scores, shares: Floats) -> Floats:
    """Algorithm 1 as printed: T[i] = sorted ascending [W[i] · len(V)]. For the record."""
    images = len(scores)
    index = [min(images - 1, int(np.floor(images * share + 1e-9))) for share in shares[:-1]]
    return np.array([float(np.sort(scores[:, k])[i]) for k, i in enumerate(index)], dtype=np.float64)


def _between(descending: NDArray[np.float64], count: int) -> float:
    """A threshold that the `count` largest reach: midway to the next one."""
    if count <= 0:
        return NEVER
    if count >= len(descending):
        return ALWAYS
    middle = (descending[count - 1] + descending[count]) / 2
    # A softmax can round to 1, and a threshold of exactly 1 would mean "never".
    return float(min(middle, np.nextafter(1.0, 0.0)))


SOLVERS: dict[str, Solver] = {
    "survivor-conditional": survivor_conditional,
    "algorithm-1": algorithm_1,
    "algorithm-1-literal": algorithm_1_literal,
}


def joint_frontier(table: Table, also: Iterable[Thresholds] = ()) -> list[ThresholdSetting]:
    """The Pareto set over a grid of the scores' quantiles and the thresholds `also`, cheapest first.

    Up to three exits it searches the whole grid; beyond, it improves `also` and the single exits one threshold at a
    time. Either way no thresholds in `also` are better on this table than the result.
    """
    also = list(also)
    grids = [_grid(table.scores[:, k], [t[k] for t in also]) for k in range(table.exits - 1)]
    if table.exits <= 3:
        return settings_on(table, grids)
    return _descend(table, grids, also)


def settings_on(table: Table, grids: list[Floats]) -> list[ThresholdSetting]:
    """The Pareto set of all combinations of thresholds in `grids`, one ascending list per exit except the last."""
    right, cost = surface(table, grids)
    images = len(table.scores)
    found = []
    for cell in _pareto_cells(right.ravel(), cost.ravel()):
        index = np.unravel_index(cell, right.shape)
        thresholds = tuple(float(grid[i]) for grid, i in zip(grids, index, strict=True))
        found.append(ThresholdSetting(float(cost.flat[cell] / images), float(right.flat[cell] / images), thresholds))
    return found


def surface(table: Table, grids: list[Floats]) -> tuple[Floats, Floats]:
    """Images right, and total cost, of every combination of thresholds, each [G1, ..., G(K-1)]."""
    shape = tuple(len(grid) for grid in grids)
    images = len(table.scores)
    right = np.full(shape, float(table.correct[:, 0].sum()))
    cost = np.full(shape, images * float(table.costs[0]))
    bins = np.zeros((0, images), dtype=np.int64)
    for k, grid in enumerate(grids):
        # An image leaves at its first `bins` thresholds and goes on with the others.
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
    """Ascending thresholds: ALWAYS, between quantiles of `scores` [N], `also`, NEVER."""
    ascending = np.sort(scores.astype(np.float64))
    cuts = np.unique(np.linspace(0, len(scores), min(BINS, len(scores)) + 1).round().astype(int))[1:-1]
    # A softmax can round to 1, and a threshold of exactly 1 would mean "never".
    middles = np.minimum((ascending[cuts - 1] + ascending[cuts]) / 2, np.nextafter(1.0, 0.0))
    return np.unique(np.concatenate([[0.0], middles, also, [1.0]]))


def _descend(table: Table, grids: list[Floats], also: list[Thresholds]) -> list[ThresholdSetting]:
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
