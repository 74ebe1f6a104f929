"""The frontier: operating points, with their expected accuracy on images that did not choose them.

Every point has one of three estimates of it: cross-fitted, counted on all images (a fixed exit), or counted on the half
that tested it (a risk-controlled point).
"""

from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.crossfit import Fold, held_out
from msmlp.model.calibration.risk import RiskLimit, risk_controlled
from msmlp.model.calibration.solvers import SOLVERS, Thresholds, ThresholdSetting, joint_frontier, pareto, thinned
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights import OperatingPoint
from msmlp.model.weights.calibration import FIXED_EXIT_GAIN, Expectation, Table, fixed_exit

JOINT = "joint"

NAMED = {"fast": 0.05, "balanced": 0.01, "accurate": 0.0}
"""Names of the cheapest points that lose at most this much accuracy to the best."""


def share_sweep(exits: int) -> list[NDArray[np.float64]]:
    """All divisions of the images among `exits` exits in steps of 1/20 (coarser beyond three exits)."""
    steps = {1: 20, 2: 20, 3: 20, 4: 12}.get(exits, 8)
    cuts = combinations_with_replacement(range(steps + 1), exits - 1)
    return [np.diff(np.array([0, *cut, steps])) / steps for cut in cuts]


def solver_frontiers(table: Table) -> dict[str, list[ThresholdSetting]]:
    """The Pareto set of each solver over the sweep, and of the joint search, which includes all their thresholds."""
    sweep = share_sweep(table.exits)
    frontiers, tried = {}, set()
    for solver, solve in SOLVERS.items():
        found = {tuple(solve(table.scores, shares).tolist()) for shares in sweep}
        frontiers[solver] = pareto(_setting(table, thresholds) for thresholds in found)
        tried |= found
    frontiers[JOINT] = joint_frontier(table, sorted(tried))
    return frontiers


def operating_points(
    table: Table,
    frontier: list[ThresholdSetting],
    folds: list[Fold],
    gflops: NDArray[np.float64],
    ms: NDArray[np.float64] | None = None,
) -> list[OperatingPoint]:
    """A thinned `frontier` of `table` as named points, cheapest first; accuracy strictly rises with the table's cost.

    The expected accuracy is cross-fitted, if there are `folds`; cost and exit shares are those of the point's
    thresholds on the table. Fixed exits join where they gain enough (FIXED_EXIT_GAIN): with few images, fitted
    thresholds may be worse than none. `gflops` and `ms` are the cumulative costs of each exit [K].
    """
    fixed = [fixed_exit(exit, table.exits) for exit in range(1, table.exits + 1)]
    settings = [setting for setting in thinned(frontier) if setting.thresholds not in fixed]
    in_gflops = replace(table, costs=gflops)
    points: dict[ThresholdSetting, OperatingPoint] = {}
    if folds and settings:
        left = held_out(folds, [setting.cost for setting in settings])
    else:
        left = np.array([exit_of(table.scores, np.array(setting.thresholds)) for setting in settings])
    for setting, exits in zip(settings, left, strict=True):
        # Choosing flatters the accuracy. The cost must be that of these very thresholds, to keep to a budget.
        there, here = in_gflops.expect_at(exits), in_gflops.expect(setting.thresholds)
        cost = table.expect(setting.thresholds).mean_cost
        points[ThresholdSetting(cost, there.accuracy, setting.thresholds)] = _point(
            "", setting.thresholds, there, here, ms
        )
    for thresholds in fixed:
        counted, alone = in_gflops.expect(thresholds), _setting(table, thresholds)
        best = max((setting.accuracy for setting in points if setting.cost <= alone.cost), default=-1.0)
        if alone.accuracy > best + FIXED_EXIT_GAIN:
            points[alone] = _point("", thresholds, counted, counted, ms)
    return named([points[setting] for setting in pareto(points)])


def risk_point(
    table: Table,
    halves: NDArray[np.int64],
    limit: RiskLimit,
    gflops: NDArray[np.float64],
    ms: NDArray[np.float64] | None = None,
) -> OperatingPoint:
    """The risk-controlled operating point; arguments as for `risk_controlled` and `operating_points`.

    The expected accuracy is that on half 1, which only chose where to stop (on the whole table if half 1 is empty).
    """
    thresholds = risk_controlled(table, halves, limit)
    in_gflops = replace(table, costs=gflops)
    test = in_gflops.take(halves == 1) if (halves == 1).any() else in_gflops
    point = _point(limit.name, thresholds, test.expect(thresholds), in_gflops.expect(thresholds), ms)
    return point.model_copy(update={"risk": limit.risk, "confidence": limit.confidence})


def _point(
    name: str, thresholds: Thresholds, there: Expectation, here: Expectation, ms: NDArray[np.float64] | None
) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        thresholds=thresholds,
        expected_accuracy=there.accuracy,
        standard_error=there.standard_error,
        mean_gflops=here.mean_cost,
        mean_ms=None if ms is None else float(np.array(here.exit_share) @ ms),
        exit_share=here.exit_share,
        solver=JOINT,
    )


def named(points: list[OperatingPoint]) -> list[OperatingPoint]:
    """Name every point; one point may have several names, and is listed with each, the last being its own."""
    best = points[-1].expected_accuracy
    roles: dict[int, list[str]] = {}
    for name, loss in NAMED.items():
        first = next(i for i, p in enumerate(points) if p.expected_accuracy >= best - loss)
        roles.setdefault(first, []).append(name)
    return [
        point.model_copy(update={"name": name, "same_as": None if name == names[-1] else names[-1]})
        for i, point in enumerate(points)
        for names in [roles.get(i, [f"p{i + 1:02d}"])]
        for name in names
    ]


def _setting(table: Table, thresholds: tuple[float, ...]) -> ThresholdSetting:
    got = table.expect(thresholds)
    return ThresholdSetting(got.mean_cost, got.accuracy, thresholds)
