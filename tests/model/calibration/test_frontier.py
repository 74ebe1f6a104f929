from itertools import pairwise

import numpy as np
import pytest

from msmlp.model.calibration.crossfit import held_out
from msmlp.model.calibration.frontier import JOINT, NAMED, operating_points, share_sweep, solver_frontiers
from msmlp.model.calibration.solvers import LEVELS, SOLVERS, ThresholdSetting, joint_frontier, thinned
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights import OperatingPoint
from msmlp.model.weights.calibration import Table, fixed_exit
from tests.model.calibration.tables import held_apart, over_many_tables, right, table


def points_of(measured: Table) -> list[OperatingPoint]:
    return operating_points(measured, joint_frontier(measured), held_apart(measured), measured.costs)


@over_many_tables
def test_a_larger_budget_never_lowers_the_expected_accuracy(measured: Table) -> None:
    points = points_of(measured)
    distinct = list(dict.fromkeys((p.mean_gflops, p.expected_accuracy, p.thresholds) for p in points))
    assert all(cheap[0] < costly[0] and cheap[1] < costly[1] for cheap, costly in pairwise(distinct))
    assert len(distinct) <= LEVELS + measured.exits


@over_many_tables
def test_every_point_is_whole(measured: Table) -> None:
    for point in points_of(measured):
        assert len(point.thresholds) == measured.exits - 1
        assert all(0 <= t <= 1 for t in point.thresholds)
        assert len(point.exit_share) == measured.exits
        assert sum(point.exit_share) == pytest.approx(1)
        assert point.mean_gflops == pytest.approx(np.array(point.exit_share) @ measured.costs)
        images = len(measured.scores)
        smoothed = (point.expected_accuracy * images + 1) / (images + 2)
        assert point.standard_error == pytest.approx((smoothed * (1 - smoothed) / (images + 2)) ** 0.5)


@over_many_tables
def test_expectations_are_of_held_out_images_unless_nothing_was_fitted(measured: Table) -> None:
    fixed = [fixed_exit(exit, measured.exits) for exit in range(1, measured.exits + 1)]
    settings = [setting for setting in thinned(joint_frontier(measured)) if setting.thresholds not in fixed]
    folds = held_apart(measured)
    if folds and settings:
        left = held_out(folds, [setting.cost for setting in settings])
    else:
        left = np.array([exit_of(measured.scores, np.array(setting.thresholds)) for setting in settings])
    found = {setting: right(measured, row) for setting, row in zip(settings, left, strict=True)}
    for point in points_of(measured):
        if point.thresholds in fixed:
            exit = fixed.index(point.thresholds)
            assert point.expected_accuracy == pytest.approx(measured.correct[:, exit].mean())
            assert point.mean_gflops == pytest.approx(measured.costs[exit])
            continue
        [setting] = [s for s in settings if s.thresholds == point.thresholds]
        assert point.expected_accuracy == pytest.approx(found[setting].mean())
        assert point.mean_gflops == pytest.approx(setting.cost), "the cost is that of its own thresholds"


@over_many_tables
def test_named_points_are_of_the_frontier_and_keep_their_promise(measured: Table) -> None:
    points = points_of(measured)
    assert len({p.name for p in points}) == len(points)
    best = max(p.expected_accuracy for p in points)
    by_name = {p.name: p for p in points}
    for name, loss in NAMED.items():
        assert by_name[name].expected_accuracy >= best - loss
        cheaper = [p for p in points if p.mean_gflops < by_name[name].mean_gflops]
        assert all(p.expected_accuracy < best - loss for p in cheaper), f"{name} is not the cheapest that may be"


@over_many_tables
def test_no_exit_alone_is_better_than_the_points_that_cost_no_more(measured: Table) -> None:
    """`accurate` among them is never worse than the last exit."""
    points = points_of(measured)
    for exit in range(1, measured.exits + 1):
        alone = measured.expect_exit(exit)
        within = [p.expected_accuracy for p in points if p.mean_gflops <= alone.mean_cost]
        assert max(within) >= alone.accuracy
    [accurate] = [p for p in points if p.name == "accurate"]
    assert accurate.expected_accuracy == max(p.expected_accuracy for p in points)
    assert accurate.expected_accuracy >= measured.correct[:, -1].mean()


@pytest.mark.parametrize(("gained", "joins"), [(4, False), (6, True)])
def test_an_exit_that_gains_next_to_nothing_is_no_point(gained: int, joins: bool) -> None:
    """Of 5,000 images: four are less than a tenth of a point."""
    correct = np.zeros((5000, 2), dtype=np.bool_)
    correct[:4000, 0] = correct[: 4000 + gained, 1] = True
    alike = Table(np.full((5000, 2), 0.5, dtype=np.float32), correct, np.array([1.0, 9.0]))
    points = {point.name: point for point in points_of(alike)}
    assert points["accurate"].thresholds == ((1.0,) if joins else (0.0,))
    assert len({point.thresholds for point in points.values()}) == 1 + joins


@over_many_tables
def test_points_that_coincide_say_so(measured: Table) -> None:
    points = points_of(measured)
    for point in points:
        others = [p.name for p in points if p.thresholds == point.thresholds]
        assert point.same_as == (None if point.name == others[-1] else others[-1])
        if point.same_as is not None:
            assert point.same_as in NAMED


@over_many_tables
def test_the_cheapest_point_is_the_cheapest_there_can_be(measured: Table) -> None:
    """Else a budget that the first exit meets would be refused."""
    assert points_of(measured)[0].mean_gflops == pytest.approx(measured.costs[0])


def test_a_frontier_in_milliseconds_knows_its_gflops_too() -> None:
    """The second exit is cheap in GFLOPs but slow: what a point spends is the table's unit."""
    in_ms = table(3, 200, 3, False, 0.1)
    in_ms = Table(in_ms.scores, in_ms.correct, np.array([1.0, 9.0, 10.0]))
    gflops = np.array([0.1, 0.11, 1.0])
    points = operating_points(in_ms, joint_frontier(in_ms), held_apart(in_ms), gflops, in_ms.costs)
    assert [p.mean_ms for p in points] == sorted(p.mean_ms for p in points)
    for point in points:
        assert point.mean_ms == pytest.approx(np.array(point.exit_share) @ in_ms.costs)
        assert point.mean_gflops == pytest.approx(np.array(point.exit_share) @ gflops)


def test_every_solver_is_measured_for_the_record() -> None:
    measured = table(3, 100, 3, False, 0.1)
    frontiers = solver_frontiers(measured)
    assert set(frontiers) == {*SOLVERS, JOINT}
    assert all(frontiers.values())
    assert {p.solver for p in points_of(measured)} == {JOINT}


def test_one_exit_has_one_point_under_every_name() -> None:
    scores, correct = np.array([[0.3], [0.9]], dtype=np.float32), np.array([[False], [True]])
    points = points_of(Table(scores, correct, np.array([2.0])))
    assert sorted(p.name for p in points) == sorted(NAMED)
    assert {(p.thresholds, p.expected_accuracy, p.mean_gflops, p.exit_share) for p in points} == {
        ((), 0.5, 2.0, (1.0,))
    }


def test_exits_that_are_never_right_leave_the_cheapest() -> None:
    measured = Table(
        np.random.default_rng(0).random((30, 3), dtype=np.float32), np.zeros((30, 3), bool), np.arange(3) + 1.0
    )
    assert joint_frontier(measured) == [ThresholdSetting(1.0, 0.0, (0.0, 0.0))]
    assert {p.thresholds for p in points_of(measured)} == {(0.0, 0.0)}


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
def test_the_sweep_parts_all_images_and_holds_both_ends(exits: int) -> None:
    sweep = share_sweep(exits)
    assert all(len(shares) == exits and (shares >= 0).all() and shares.sum() == pytest.approx(1) for shares in sweep)
    assert len({tuple(shares) for shares in sweep}) == len(sweep)
    ends = {tuple(shares) for shares in sweep}
    assert tuple(np.eye(exits)[0]) in ends
    assert tuple(np.eye(exits)[-1]) in ends
