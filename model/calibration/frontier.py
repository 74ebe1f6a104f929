"""The frontier: the Pareto set of operating points over a sweep of exit shares."""

from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from model.calibration.solvers import SOLVERS
from model.weights import OperatingPoint
from model.weights.calibration import expectation

CANDIDATES = ("survivor-conditional", "algorithm-1")
"""Whose points may become operating points; Algorithm 1 as printed is measured for the record only."""

NAMED = {"fast": 0.05, "balanced": 0.01, "accurate": 0.0}
"""The cheapest point that loses at most so much accuracy against the best one."""


def share_sweep(exits: int) -> list[NDArray[np.float64]]:
    """Every way to part all images among `exits` exits in steps of 1/20 (coarser beyond three exits)."""
    steps = {1: 20, 2: 20, 3: 20, 4: 12}.get(exits, 8)
    cuts = combinations_with_replacement(range(steps + 1), exits - 1)
    return [np.diff(np.array([0, *cut, steps])) / steps for cut in cuts]


def solver_frontiers(
    scores: NDArray[np.float32], correct: NDArray[np.bool_], gflops: NDArray[np.float64]
) -> dict[str, list[OperatingPoint]]:
    """What each solver reaches on a table [N, K] over the sweep: its own Pareto set, unnamed, cheapest first.

    `gflops` [K] is the cumulative cost of each exit.
    """
    sweep = share_sweep(scores.shape[1])
    frontiers = {}
    for solver, solve in SOLVERS.items():
        found = {tuple(solve(scores, shares).tolist()) for shares in sweep}
        frontiers[solver] = pareto([_measured(scores, correct, gflops, t, solver) for t in sorted(found)])
    return frontiers


def operating_points(frontiers: dict[str, list[OperatingPoint]]) -> list[OperatingPoint]:
    """The Pareto set of the CANDIDATES' frontiers, cheapest first, `fast`, `balanced` and `accurate` among it."""
    return named(pareto([point for solver in CANDIDATES for point in frontiers[solver]]))


def _measured(
    scores: NDArray[np.float32],
    correct: NDArray[np.bool_],
    gflops: NDArray[np.float64],
    thresholds: tuple[float, ...],
    solver: str,
) -> OperatingPoint:
    expected = expectation(scores, correct, gflops, np.array(thresholds, dtype=np.float64))
    return OperatingPoint(
        name="",
        thresholds=thresholds,
        expected_accuracy=expected.accuracy,
        standard_error=expected.standard_error,
        mean_gflops=expected.mean_gflops,
        exit_share=expected.exit_share,
        solver=solver,
    )


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
