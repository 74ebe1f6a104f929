"""Settings of the thresholds on a table of images, and frontiers of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Thresholds = tuple[float, ...]

LEVELS = 40
"""Costs at which a frontier is looked at, from the cheapest to the dearest."""


@dataclass(frozen=True)
class Table:
    """Scores [N, K], correctness [N, K] and the cumulative cost of each exit [K], in whatever unit."""

    scores: NDArray[np.float32]
    correct: NDArray[np.bool_]
    costs: Floats

    @property
    def exits(self) -> int:
        """K."""
        return int(self.scores.shape[1])

    def take(self, rows: NDArray[np.bool_]) -> "Table":
        """Some of the images."""
        return Table(self.scores[rows], self.correct[rows], self.costs)


class Setting(NamedTuple):
    """Thresholds [K - 1] with their mean cost and accuracy on the table they were found on."""

    cost: float
    accuracy: float
    thresholds: Thresholds


def pareto(settings: Iterable[Setting]) -> list[Setting]:
    """Those that no other beats in both cost and accuracy, cheapest first."""
    kept: list[Setting] = []
    for setting in sorted(settings, key=lambda s: (s.cost, -s.accuracy, s.thresholds)):
        if not kept or setting.accuracy > kept[-1].accuracy:
            kept.append(setting)
    return kept


def best_within(frontier: list[Setting], budget: float) -> Setting:
    """The most accurate setting that costs at most `budget`; the cheapest when none does."""
    # A sum in another order may differ in its last digits.
    return [frontier[0], *(s for s in frontier if s.cost <= budget * (1 + 1e-9))][-1]


def thinned(frontier: list[Setting], levels: int = LEVELS) -> list[Setting]:
    """The best setting at each of `levels` equally spaced costs, with the cheapest and the most accurate."""
    budgets = np.linspace(frontier[0].cost, frontier[-1].cost, levels)
    return list(dict.fromkeys(best_within(frontier, budget) for budget in budgets))
