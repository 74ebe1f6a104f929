from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.calibration.frontier import CANDIDATES, NAMED, operating_points, share_sweep, solver_frontiers
from model.calibration.solvers import SOLVERS
from model.exits import exit_of

Table = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]


def table(exits: int, images: int, seed: int, ties: bool, skill: float) -> Table:
    """Scores and correctness [N, K], cumulative cost [K]; deeper exits are not always better."""
    rng = np.random.default_rng(seed)
    scores = rng.random((images, exits))
    if ties:
        scores = np.round(scores, 1)
    correct = rng.random((images, exits)) < np.clip(scores + skill, 0, 1)
    return scores.astype(np.float32), correct, np.cumsum(rng.random(exits) + 0.1)


def over_many_tables(test: Callable[[Table], None]) -> Callable[[Table], None]:
    # The sweep grows fast with K: mostly 2 exits, some 3, and one table of 4 a test.
    exits = st.sampled_from([2, 2, 2, 1, 2, 3])
    drawn = st.builds(table, exits, st.integers(2, 60), st.integers(0, 2**32 - 1), st.booleans(), st.floats(-0.3, 0.3))
    return example(table(4, 200, 7, False, 0.1))(given(drawn)(test))


def accuracy_and_cost(measured: Table, thresholds: tuple[float, ...]) -> tuple[float, float]:
    scores, correct, gflops = measured
    left = exit_of(scores, np.array(thresholds)) - 1
    return sum(correct[i, k] for i, k in enumerate(left)) / len(left), sum(gflops[k] for k in left) / len(left)


@over_many_tables
def test_every_point_tells_the_truth_about_its_thresholds(measured: Table) -> None:
    scores, _, _ = measured
    for point in operating_points(solver_frontiers(*measured)):
        accuracy, cost = accuracy_and_cost(measured, point.thresholds)
        assert point.expected_accuracy == pytest.approx(accuracy)
        assert point.mean_gflops == pytest.approx(cost)
        assert point.standard_error == pytest.approx((accuracy * (1 - accuracy) / len(scores)) ** 0.5, abs=1e-9)
        left = exit_of(scores, np.array(point.thresholds))
        assert point.exit_share == pytest.approx([(left == k + 1).mean() for k in range(scores.shape[1])])


@over_many_tables
def test_no_point_is_dominated_by_another_or_by_anything_swept(measured: Table) -> None:
    scores, _, _ = measured
    points = operating_points(solver_frontiers(*measured))
    swept = [
        accuracy_and_cost(measured, tuple(solve(scores, shares)))
        for solve in (SOLVERS[name] for name in CANDIDATES)
        for shares in share_sweep(scores.shape[1])[::7]
    ]
    reached = [(p.expected_accuracy, p.mean_gflops) for p in points]
    for accuracy, cost in reached:
        for other, price in reached + swept:
            assert not (other >= accuracy and price < cost - 1e-12), "as good for less"
            assert not (other > accuracy + 1e-12 and price <= cost), "better for the same"


@over_many_tables
def test_named_points_are_of_the_frontier_and_keep_their_promise(measured: Table) -> None:
    points = operating_points(solver_frontiers(*measured))
    assert len({p.name for p in points}) == len(points)
    assert [p.mean_gflops for p in points] == sorted(p.mean_gflops for p in points)
    best = max(p.expected_accuracy for p in points)
    by_name = {p.name: p for p in points}
    for name, loss in NAMED.items():
        assert by_name[name].expected_accuracy >= best - loss
        cheaper = [p for p in points if p.mean_gflops < by_name[name].mean_gflops]
        assert all(p.expected_accuracy < best - loss for p in cheaper), f"{name} is not the cheapest that may be"


def test_algorithm_1_as_printed_is_measured_but_never_served() -> None:
    frontiers = solver_frontiers(*table(3, 100, 3, False, 0.1))
    assert set(frontiers) == set(SOLVERS)
    assert frontiers["algorithm-1-literal"]
    assert "algorithm-1-literal" not in {p.solver for p in operating_points(frontiers)}


def test_one_exit_has_one_point_under_every_name() -> None:
    scores, correct = np.array([[0.3], [0.9]], dtype=np.float32), np.array([[False], [True]])
    points = operating_points(solver_frontiers(scores, correct, np.array([2.0])))
    assert sorted(p.name for p in points) == sorted(NAMED)
    assert {(p.thresholds, p.expected_accuracy, p.mean_gflops, p.exit_share) for p in points} == {
        ((), 0.5, 2.0, (1.0,))
    }


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
def test_the_sweep_parts_all_images_and_holds_both_ends(exits: int) -> None:
    sweep = share_sweep(exits)
    assert all(len(shares) == exits and (shares >= 0).all() and shares.sum() == pytest.approx(1) for shares in sweep)
    assert len({tuple(shares) for shares in sweep}) == len(sweep)
    ends = {tuple(shares) for shares in sweep}
    assert tuple(np.eye(exits)[0]) in ends
    assert tuple(np.eye(exits)[-1]) in ends
