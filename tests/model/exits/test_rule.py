import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msmlp.model.exits.rule import Reason, decide, decided, exit_of, leaves, outlook

# Few values, so that scores often stand exactly on a threshold.
STEPS = st.sampled_from([0.0, 0.25, 0.5, 0.75, float(np.nextafter(1.0, 0.0)), 1.0])


def one(
    exit: int, exits: int, score: float, threshold: float, min_exit: int = 1, max_exit: int | None = None
) -> Reason:
    limit = exits if max_exit is None else max_exit
    return Reason(decide(exit, exits, np.array([score]), np.array([threshold]), min_exit, limit)[0])


@pytest.mark.parametrize(
    ("score", "threshold", "expected"),
    [
        (0.0, 0.0, True),
        (1.0, 0.0, True),
        (0.5, 0.5, True),
        (np.nextafter(0.5, 0.0), 0.5, False),
        (0.99, 1.0, False),
        (1.0, 1.0, False),
        (1.0, np.nextafter(1.0, 0.0), True),
    ],
)
def test_a_score_leaves_at_or_above_its_threshold_and_never_at_one(
    score: float, threshold: float, expected: bool
) -> None:
    assert leaves(np.array([score]), threshold).tolist() == [expected]


def test_a_float32_score_is_compared_as_the_number_it_is() -> None:
    score = np.array([0.1], dtype=np.float32)  # a little above 0.1
    assert leaves(score, 0.1)[0]
    assert leaves(score, float(score[0]))[0]
    assert not leaves(score, float(np.nextafter(np.float64(score[0]), 1.0)))[0]


def test_reasons() -> None:
    assert one(1, 3, score=0.9, threshold=0.8) == Reason.CONFIDENT
    assert one(1, 3, score=0.7, threshold=0.8) == Reason.GOES_ON
    assert one(2, 3, score=0.7, threshold=0.8, max_exit=2) == Reason.MAX_EXIT
    assert one(2, 3, score=0.9, threshold=0.8, max_exit=2) == Reason.CONFIDENT
    assert one(1, 3, score=0.9, threshold=0.8, min_exit=2) == Reason.GOES_ON
    assert one(3, 3, score=0.0, threshold=1.0) == Reason.FINAL
    assert one(3, 3, score=0.9, threshold=0.8, max_exit=3) == Reason.FINAL


def test_bounds_and_thresholds_may_differ_from_image_to_image() -> None:
    reasons = decide(
        2,
        4,
        np.array([0.6, 0.6, 0.6, 0.6]),
        np.array([0.5, 0.7, 0.5, 0.7]),
        np.array([1, 1, 3, 1]),
        np.array([4, 4, 4, 2]),
    )
    assert reasons.tolist() == [Reason.CONFIDENT, Reason.GOES_ON, Reason.GOES_ON, Reason.MAX_EXIT]


def test_thresholds_of_all_zero_leave_first_and_of_all_one_last() -> None:
    scores = np.random.default_rng(0).random((50, 4))
    scores[:10] = 1.0
    scores[10:20] = 0.0
    assert (exit_of(scores, np.zeros(3)) == 1).all()
    assert (exit_of(scores, np.ones(3)) == 4).all()
    assert (exit_of(scores, np.zeros(3), min_exit=3) == 3).all()
    assert (exit_of(scores, np.ones(3), max_exit=2) == 2).all()


def test_one_exit_needs_no_threshold() -> None:
    assert exit_of(np.array([[0.0], [1.0]]), np.zeros(0)).tolist() == [1, 1]


def reference(scores: list[float], thresholds: list[float], min_exit: int, max_exit: int) -> int:
    exits = len(scores)
    for k in range(1, exits):
        sure = thresholds[k - 1] != 1 and scores[k - 1] >= thresholds[k - 1]
        if k >= max_exit or (sure and k >= min_exit):
            return k
    return exits


@st.composite
def tables(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
    exits = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(STEPS, min_size=exits, max_size=exits), max_size=12))
    thresholds = draw(st.lists(STEPS, min_size=exits - 1, max_size=exits - 1))
    bounds = sorted((draw(st.integers(1, exits)), draw(st.integers(1, exits))))
    return np.array(rows).reshape(len(rows), exits), np.array(thresholds), *bounds


@given(tables())
def test_exit_of_agrees_with_a_plain_loop(table: tuple[NDArray[np.float64], NDArray[np.float64], int, int]) -> None:
    scores, thresholds, low, high = table
    expected = [reference(row, thresholds.tolist(), low, high) for row in scores.tolist()]
    assert exit_of(scores, thresholds, low, high).tolist() == expected


@given(tables())
def test_deciding_stage_by_stage_is_exit_of(table: tuple[NDArray[np.float64], NDArray[np.float64], int, int]) -> None:
    """What the scheduler does, one stage and its survivors at a time, is what calibration assumes of it."""
    scores, thresholds, low, high = table
    images, exits = scores.shape
    left, alive = np.zeros(images, dtype=np.int64), np.arange(images)
    least, others = outlook(exits, thresholds, low, high)
    for k in range(1, exits + 1):
        threshold = thresholds[k - 1] if k < exits else 1.0
        now = scores[alive, k - 1]
        reasons = decided(now, np.full(len(alive), least[k - 1]), np.full(len(alive), others[k - 1], dtype=np.int8))
        assert reasons.tolist() == decide(k, exits, now, np.full(len(alive), threshold), low, high).tolist()
        left[alive[reasons != Reason.GOES_ON]] = k
        alive = alive[reasons == Reason.GOES_ON]
    assert not len(alive)
    assert left.tolist() == exit_of(scores, thresholds, low, high).tolist()
