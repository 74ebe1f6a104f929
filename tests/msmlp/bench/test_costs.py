"""The bound and the predicted ratios, against numbers worked out by hand and against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.bench.costs import StageCosts, reach_of

# Two stages, batches of 1, 4 and 8: seconds chosen so that each stage has another best bucket.
COSTS = StageCosts((1, 4, 8), np.array([[2.0, 4.0, 4.0], [1.0, 8.0, 16.0]]))

seconds = st.floats(0.001, 10)


@st.composite
def costs(draw: st.DrawFn) -> StageCosts:
    stages, buckets = draw(st.integers(1, 4)), tuple(sorted(draw(st.sets(st.integers(1, 64), min_size=1, max_size=5))))
    rows = draw(
        st.lists(st.lists(seconds, min_size=len(buckets), max_size=len(buckets)), min_size=stages, max_size=stages)
    )
    return StageCosts(buckets, np.array(rows))


def test_the_bound_takes_every_stage_at_its_own_best_batch() -> None:
    # 0.5 s an image in batches of 8, and for half of the images 1 s in batches of 1.
    assert COSTS.images_per_second(np.array([1.0, 0.5])) == pytest.approx(1 / (0.5 + 0.5 * 1.0))


def test_the_full_model_has_one_batch_for_all_stages() -> None:
    # 3 s an image alone, 1 + 2 in fours, 0.5 + 2 in eights.
    assert COSTS.best_batch() == 8
    assert COSTS.ratio_to_full(np.array([1.0, 0.5])) == pytest.approx(2.5 / 1.0)


def test_without_exits_and_with_one_best_batch_the_full_model_is_as_fast() -> None:
    alike = StageCosts((1, 4), np.array([[1.0, 2.0], [2.0, 3.0]]))
    assert alike.ratio_to_full(np.ones(2)) == pytest.approx(1.0)


def test_batches_take_what_their_buckets_take() -> None:
    assert COSTS.batches_seconds([(0, 8), (0, 5), (1, 3), (1, 1)]) == pytest.approx(4 + 4 + 8 + 1)


def test_more_than_the_largest_batch_goes_in_several() -> None:
    assert COSTS.stage_seconds(0, 17) == pytest.approx(4 + 4 + 2)
    assert COSTS.stage_seconds(1, 16) == pytest.approx(32)


def test_who_leaves_later_enters_every_stage_before() -> None:
    assert reach_of(np.array([1, 1, 2, 3]), 3).tolist() == [1.0, 0.5, 0.25]


@given(costs(), st.data())
def test_no_way_to_batch_beats_the_bound(costs: StageCosts, data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, costs.buckets[-1]), min_size=1, max_size=8)
    batches = [(stage, n) for stage in range(len(costs.seconds)) for n in data.draw(sizes)]
    entered = np.array([sum(n for k, n in batches if k == stage) for stage in range(len(costs.seconds))])
    images = entered[0]
    assert images / costs.batches_seconds(batches) <= costs.images_per_second(entered / images) * (1 + 1e-9)


@given(costs())
def test_exits_never_make_the_prediction_slower_than_the_full_model(costs: StageCosts) -> None:
    assert costs.ratio_to_full(np.ones(len(costs.seconds))) >= 1 - 1e-9
