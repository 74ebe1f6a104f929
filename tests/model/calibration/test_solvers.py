from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from msmlp.model.calibration.frontier import JOINT, share_sweep, solver_frontiers
from msmlp.model.calibration.solvers import (
    SOLVERS,
    Solver,
    ThresholdSetting,
    algorithm_1,
    algorithm_1_literal,
    best_within,
    joint_frontier,
    pareto,
    survivor_conditional,
    thinned,
)
from msmlp.model.exits.rule import exit_of, leaves
from msmlp.model.weights.calibration import Table
from tests.model.calibration.tables import TABLES, over_many_tables, table

Problem = tuple[NDArray[np.float32], NDArray[np.float64]]

# Ties, ones and zeros are where a solver slips; any float32 fills the rest.
SCORES = st.one_of(
    st.sampled_from([0.0, 0.5, 0.75, 1.0]), st.integers(0, 8).map(lambda i: i / 8), st.floats(0, 1, width=32)
)


@st.composite
def problems(draw: st.DrawFn, ties: bool = True) -> Problem:
    """Scores [N, K] and exit shares [K] that sum to 1."""
    exits, images = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    if ties:
        scores = draw(arrays(np.float32, (images, exits), elements=SCORES))
    else:
        column = st.lists(st.floats(0, 1, width=32), min_size=images, max_size=images, unique=True)
        scores = np.array([draw(column) for _ in range(exits)], dtype=np.float32).T
    parts = draw(st.lists(st.integers(0, 20), min_size=exits, max_size=exits).filter(any))
    return scores, np.array(parts) / sum(parts)


def wanted(images: int, share: float) -> int:
    return int(np.floor(images * share + 1e-9))


@given(problems())
def test_the_survivor_solver_meets_the_shares_within_one_tie_group(problem: Problem) -> None:
    scores, shares = problem
    images, exits = scores.shape
    thresholds = survivor_conditional(scores, shares)
    left = exit_of(scores, thresholds)
    for k in range(exits - 1):
        alive = left > k
        gone = left == k + 1
        target = min(wanted(images, shares[k]), int(alive.sum()))
        # All the images asked for leave, and of those beyond, only equals of the last one asked for.
        assert gone.sum() >= target
        if target == 0:
            assert not gone.any()
        else:
            last = np.sort(scores[alive, k])[::-1][target - 1]
            assert gone.sum() - target < (scores[alive, k] == last).sum()
            assert scores[gone, k].min() == last


@given(problems(ties=False))
def test_without_ties_the_survivor_solver_meets_the_shares_exactly(problem: Problem) -> None:
    scores, shares = problem
    images, exits = scores.shape
    counts = np.bincount(exit_of(scores, survivor_conditional(scores, shares)), minlength=exits + 1)[1:]
    assert counts[:-1].tolist() == [wanted(images, share) for share in shares[:-1]]


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_images_does_not_matter(problem: Problem, seed: int) -> None:
    scores, shares = problem
    order = np.random.default_rng(seed).permutation(len(scores))
    for name, solve in SOLVERS.items():
        assert solve(scores, shares).tolist() == solve(scores[order], shares).tolist(), name


@given(problem=problems())
def test_equal_scores_fall_on_one_side(problem: Problem) -> None:
    scores, shares = problem
    for name, solve in SOLVERS.items():
        thresholds = solve(scores, shares)
        assert len(thresholds) == scores.shape[1] - 1, name
        assert ((thresholds >= 0) & (thresholds <= 1)).all(), name
        for k, threshold in enumerate(thresholds):
            sure = leaves(scores[:, k], threshold)
            assert not set(scores[sure, k].tolist()) & set(scores[~sure, k].tolist()), name


@pytest.mark.parametrize("solver", [survivor_conditional, algorithm_1])
def test_scores_of_exactly_one_can_leave(solver: Solver) -> None:
    """A threshold of 1 means never, so images with a score of 1 need one below."""
    scores = np.array([[1.0, 0], [1.0, 0], [0.9, 0], [0.1, 0]], dtype=np.float32)
    assert exit_of(scores, solver(scores, np.array([0.25, 0.75]))).tolist() == [1, 1, 2, 2]


def test_the_survivor_solver_looks_only_at_those_still_there() -> None:
    """The sure images of exit 2 have left at exit 1: seen over all images, exit 2 would get none."""
    scores = np.array([[0.9, 0.9, 0], [0.8, 0.8, 0], [0.2, 0.3, 0], [0.1, 0.2, 0]], dtype=np.float32)
    shares = np.array([0.5, 0.25, 0.25])
    assert exit_of(scores, survivor_conditional(scores, shares)).tolist() == [1, 1, 2, 3]
    assert exit_of(scores, algorithm_1(scores, shares)).tolist() == [1, 1, 3, 3]


def test_a_share_beyond_the_survivors_takes_all_of_them() -> None:
    scores = np.full((5, 3), 0.5, dtype=np.float32)
    assert exit_of(scores, survivor_conditional(scores, np.array([0.2, 0.6, 0.2]))).tolist() == [1] * 5


@given(problems())
def test_algorithm_1_takes_each_share_of_all_images(problem: Problem) -> None:
    """The text: the images with the highest scores, as many as the share says, are above every exit's threshold."""
    scores, shares = problem
    for k, threshold in enumerate(algorithm_1(scores, shares)):
        count = wanted(len(scores), shares[k])
        descending = sorted(scores[:, k].tolist(), reverse=True)
        sure = int(leaves(scores[:, k], threshold).sum())
        assert sure == (sum(score >= descending[count - 1] for score in descending) if count else 0)


@given(problems())
def test_algorithm_1_as_printed(problem: Problem) -> None:
    """The pseudocode word by word: sort the values of V ascending, T[i] = sorted[W[i] · len(V)]."""
    scores, shares = problem
    expected = []
    for k, share in enumerate(shares[:-1]):
        ascending = sorted(scores[:, k].tolist())
        expected.append(ascending[min(wanted(len(scores), share), len(scores) - 1)])
    assert algorithm_1_literal(scores, shares).tolist() == expected


def test_algorithm_1_as_printed_lets_the_wrong_portion_go() -> None:
    """Why the literal form is kept for the record only: asked to let 10 % go, it lets 90 %."""
    scores = np.linspace(0.005, 0.995, 100, dtype=np.float32)[:, None].repeat(2, axis=1)
    shares = np.array([0.1, 0.9])
    assert (exit_of(scores, algorithm_1(scores, shares)) == 1).sum() == 10
    assert (exit_of(scores, algorithm_1_literal(scores, shares)) == 1).sum() == 90


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
    cheap, costly = ThresholdSetting(1.0, 0.5, (0.0,)), ThresholdSetting(2.0, 0.7, (1.0,))
    assert best_within([cheap, costly], 1.99) == cheap
    assert best_within([cheap, costly], 2.0) == costly
    assert best_within([cheap, costly], 0.1) == cheap
