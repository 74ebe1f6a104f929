"""The frontier: the Pareto set of operating points over a sweep of exit shares."""

from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from model.calibration.solvers import SOLVERS
from model.weights import OperatingPoint
from model.weights.calibration import expectation

NAMED = {"fast": 0.05, "balanced": 0.01, "accurate": 0.0}
"""The cheapest point that loses at most so much accuracy against the best one."""


def share_sweep(exits: int) -> list[NDArray[np.float64]]:
    """Every way to part all images among `exits` exits in steps of 1/20 (coarser beyond three exits)."""
    steps = {1: 20, 2: 20, 3: 20, 4: 12}.get(exits, 8)
    cuts = combinations_with_replacement(range(steps + 1), exits - 1)
    return [np.diff(np.array([0, *cut, steps])) / steps for cut in cuts]


def operating_points(
    scores: NDArray[np.float32], correct: NDArray[np.bool_], gflops: NDArray[np.float64]
) -> list[OperatingPoint]:
    """The Pareto set on a table [N, K], cheapest first, with `fast`, `balanced` and `accurate` among it.

    `gflops` [K] is the cumulative cost of each exit.
    """
    candidates = []
    seen = set()
    for solver, solve in SOLVERS.items():
        for shares in share_sweep(scores.shape[1]):
            thresholds = solve(scores, shares)
            if tuple(thresholds) in seen:
                continue
            seen.add(tuple(thresholds))
            expected = expectation(scores, correct, gflops, thresholds)
            candidates.append(
                OperatingPoint(
                    name="",
                    thresholds=tuple(thresholds.tolist()),
                    expected_accuracy=expected.accuracy,
                    standard_error=expected.standard_error,
                    mean_gflops=expected.mean_gflops,
                    exit_share=expected.exit_share,
                    solver=solver,
                )
            )
    return named(pareto(candidates))


def pareto(candidates: list[OperatingPoint]) -> list[OperatingPoint]:
    """The points no other beats in both cost and accuracy, cheapest first."""
    kept: list[OperatingPoint] = []
    for point in sorted(candidates, key=lambda p: (p.mean_gflops, -p.expected_accuracy)):
        if not kept or point.expected_accuracy > kept[-1].expected_accuracy:
            kept.append(point)
    return kept


def named(points: list[OperatingPoint]) -> list[OperatingPoint]:
    """Every point gets a name; one that is two named points at once (few exits) stands in the list twice."""
    best = points[-1].expected_accuracy
    roles: dict[int, list[str]] = {}
    for name, loss in NAMED.items():
        first = next(i for i, p in enumerate(points) if p.expected_accuracy >= best - loss)
        roles.setdefault(first, []).append(name)
    return [
        point.model_copy(update={"name": name})
        for i, point in enumerate(points)
        for name in roles.get(i, [f"p{i + 1:02d}"])
    ]
