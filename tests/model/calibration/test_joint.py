from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.calibration.frontier import JOINT, share_sweep, solver_frontiers
from msmlp.model.calibration.solvers import (
    SOLVERS,
    Table,
    ThresholdSetting,
    best_within,
    joint_frontier,
    pareto,
    thinned,
)
from msmlp.model.exits.rule import exit_of
from tests.model.calibration.tables import TABLES, over_many_tables, table


def by_counting(measured: Table, thresholds: tuple[float, ...]) -> tuple[float, float]:
    """Mean cost and accuracy, image by image."""
    left = exit_of(measured.scores, np.array(thresholds)) - 1
    return measured.costs[left].mean(), measured.correct[np.arange(len(left)), left].mean()


def assert_as_good(frontier: list[ThresholdSetting], cost: float, accuracy: float) -> None:
    assert any(s.cost <= cost + 1e-9 and s.accuracy >= accuracy - 1e-9 for s in frontier), (cost, accuracy)


@over_many_tables
def test_nothing_a_solver_reaches_on_the_table_is_better(measured: Table) -> None:
    joint = solver_frontiers(measured)[JOINT]
    sweep = share_sweep(measured.exits)[::3]
    for thresholds in {tuple(solve(measured.scores, shares)) for solve in SOLVERS.values() for shares in sweep}:
        assert_as_good(joint, *by_counting(measured, thresholds))


@over_many_tables
def test_settings_say_what_their_thresholds_give(measured: Table) -> None:
    frontier = joint_frontier(measured)
    for setting in frontier:
        assert (setting.cost, setting.accuracy) == pytest.approx(by_counting(measured, setting.thresholds))
        assert len(setting.thresholds) == measured.exits - 1
        assert all(0 <= t <= 1 for t in setting.thresholds)
    assert len({s.cost for s in frontier}) == len({s.accuracy for s in frontier}) == len(frontier)
    assert frontier == pareto(frontier)


@given(exits=st.integers(1, 3), images=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_up_to_three_exits_no_thresholds_at_all_are_better(exits: int, images: int, seed: int, ties: bool) -> None:
    measured = table(exits, images, seed, ties, 0.1)
    # Whatever the thresholds, only which scores reach them matters: these are all there are.
    steps = [sorted({0.0, 1.0, *np.minimum(column, np.nextafter(1, 0))}) for column in measured.scores.T[:-1]]
    frontier = joint_frontier(measured)
    for thresholds in product(*steps):
        assert_as_good(frontier, *by_counting(measured, thresholds))


def test_with_many_images_quantiles_come_near_the_whole() -> None:
    measured = table(2, 2000, 1, False, 0.1)
    frontier = joint_frontier(measured)
    for threshold in measured.scores[::7, 0]:
        cost, accuracy = by_counting(measured, (float(threshold),))
        # Between two thresholds of the grid lie 2000 / 300 images.
        assert best_within(frontier, cost + 7 / 2000 * measured.costs[-1]).accuracy >= accuracy - 7 / 2000


def test_beyond_three_exits_thresholds_are_improved_together() -> None:
    measured = table(4, 60, 2, False, 0.0)
    frontiers = solver_frontiers(measured)
    budget = float(measured.costs.mean())
    alone = max(best_within(frontiers[solver], budget).accuracy for solver in SOLVERS)
    assert best_within(frontiers[JOINT], budget).accuracy > alone
    assert best_within(joint_frontier(measured), budget).accuracy > alone


@given(TABLES, st.integers(2, 40))
def test_thinning_keeps_both_ends_and_the_order(measured: Table, levels: int) -> None:
    frontier = joint_frontier(measured)
    thin = thinned(frontier, levels)
    assert len(thin) <= levels
    assert (thin[0], thin[-1]) == (frontier[0], frontier[-1])
    assert thin == pareto(thin)
    for level in np.linspace(frontier[0].cost, frontier[-1].cost, levels):
        assert best_within(thin, level).accuracy == best_within(frontier, level).accuracy


def test_the_best_within_a_budget() -> None:
    cheap, dear = ThresholdSetting(1.0, 0.5, (0.0,)), ThresholdSetting(2.0, 0.7, (1.0,))
    assert best_within([cheap, dear], 1.99) == cheap
    assert best_within([cheap, dear], 2.0) == dear
    assert best_within([cheap, dear], 0.1) == cheap
