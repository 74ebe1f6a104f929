"""The bound, against numbers worked out by hand and against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.bench.stages import StageCosts, reach_of

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


def test_an_image_that_leaves_later_enters_every_earlier_stage() -> None:
    assert reach_of(np.array([1, 1, 2, 3]), 3).tolist() == [1.0, 0.5, 0.25]


@given(costs(), st.data())
def test_no_way_to_batch_beats_the_bound(costs: StageCosts, data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, costs.buckets[-1]), min_size=1, max_size=8)
    batches = [(stage, n) for stage in range(len(costs.seconds)) for n in data.draw(sizes)]
    entered = np.array([sum(n for k, n in batches if k == stage) for stage in range(len(costs.seconds))])
    seconds = sum(costs.seconds[k, np.searchsorted(costs.buckets, n)] for k, n in batches)
    assert entered[0] / seconds <= costs.images_per_second(entered / entered[0]) * (1 + 1e-9)
