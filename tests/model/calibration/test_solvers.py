import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from msmlp.model.calibration.solvers import SOLVERS, Solver, algorithm_1, algorithm_1_literal, survivor_conditional
from msmlp.model.exits.rule import exit_of, leaves

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
