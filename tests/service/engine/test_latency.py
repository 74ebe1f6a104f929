"""Latency model, load estimate and stage selector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.engine.latency import MEMORY, REFRESH, LatencyModel, LoadEstimate

BUCKETS = (1, 2, 4)


def times() -> LatencyModel:
    return LatencyModel(BUCKETS, np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))


def test_a_batch_takes_what_its_bucket_takes() -> None:
    assert [times().predict(0, images) for images in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 3.0]
    assert [times().predict(1, images) for images in (1, 2, 3, 4)] == [10.0, 20.0, 30.0, 30.0]
    assert times().predict(1, 1000) == 30.0, "as one full batch"


def test_what_is_measured_is_learnt() -> None:
    learning = times()
    for _ in range(100):
        learning.learn(1, 3, 60.0)
    assert learning.predict(1, 4) == pytest.approx(60.0, rel=1e-2)


def test_a_bucket_that_is_slower_than_the_others_is_learnt_as_such() -> None:
    learning = times()
    for _ in range(1000):
        learning.learn(0, 1, 1.0)
        learning.learn(0, 2, 2.0)
        learning.learn(0, 4, 6.0)
    assert [learning.predict(0, images) for images in (1, 2, 4)] == pytest.approx([1.0, 2.0, 6.0], rel=0.2)


def test_what_is_not_run_is_tried_again() -> None:
    """Bad luck with the best bucket is forgotten while others run."""
    learning = times()
    for _ in range(REFRESH):
        learning.learn(0, 4, 9.0)
        learning.learn(0, 1, 1.0)
    assert learning.take(0, 4) < 4
    for _ in range(50 * REFRESH):
        learning.learn(0, 1, 1.0)
    assert learning.take(0, 4) == 4


def test_a_slow_device_is_slow_for_what_never_ran() -> None:
    """Shared with others since the warm-up, it takes twice as long for everything."""
    learning = times()
    for turn in range(300):
        stage = turn % 2
        learning.learn(stage, 4, (6.0, 60.0)[stage])
    assert [learning.predict(0, 4), learning.predict(1, 4)] == pytest.approx([6.0, 60.0], rel=1e-2)
    assert learning.predict(0, 1) == pytest.approx(2.0, rel=0.25)
    assert learning.best == pytest.approx([6.0 / 4, 60.0 / 4], rel=0.1)


def test_a_stray_batch_says_little() -> None:
    learning = times()
    learning.learn(0, 1, 11.0)
    assert 1.0 < learning.predict(0, 1) <= 1.3
    learning.learn(0, 1, 1e9)
    assert learning.predict(0, 1) <= 1.6


def test_stray_batches_do_not_make_the_best_bucket_look_worse_than_its_neighbours() -> None:
    learning = sizes(1.0, 1.9, 3.7, 7.3)
    for _ in range(REFRESH):
        learning.learn(0, 8, 7.3)
    for _ in range(2):
        learning.learn(0, 8, 100.0)
    for _ in range(REFRESH - 2):
        learning.learn(0, 8, 7.3)
    assert learning.take(0, 8) == 8


def test_the_warm_ups_measurements_stay_as_they_are() -> None:
    measured = np.ones((1, 3))
    LatencyModel(BUCKETS, measured).learn(0, 1, 100.0)
    assert (measured == 1).all()


def sizes(*seconds: float, buckets: tuple[int, ...] = (1, 2, 4, 8)) -> LatencyModel:
    """One stage."""
    return LatencyModel(buckets, np.array([seconds]))


def test_where_a_batch_takes_the_same_whatever_its_size_all_go_together() -> None:
    alike = sizes(1.0, 1.0, 1.0, 1.0)
    assert [alike.take(0, waiting) for waiting in (1, 3, 5, 8, 100)] == [1, 3, 5, 8, 8]
    assert alike.full(0) == 8
    assert [alike.worth(0, waiting) for waiting in (1, 4, 6, 100)] == [1 / 8, 0.5, 0.75, 1.0]


def test_where_every_image_costs_the_same_no_batch_is_padded() -> None:
    linear = sizes(1.0, 2.0, 4.0, 8.0)
    assert [linear.take(0, waiting) for waiting in (1, 2, 3, 5, 6, 7, 8, 9)] == [1, 2, 2, 4, 4, 4, 8, 8]
    assert linear.full(0) == 1, "any batch is worth going first"
    assert linear.worth(0, 1) == linear.worth(0, 5) == 1.0


def test_the_cheapest_batch_is_taken() -> None:
    costly = sizes(1.0, 1.9, 100.0, 200.0)
    assert [costly.take(0, waiting) for waiting in (2, 3, 4, 5, 8)] == [2, 2, 2, 2, 2]
    assert costly.full(0) == 2
    assert sizes(1.0, 100.0, 100.0, 100.0).take(0, 8) == 1, "one by one, each a full batch"


def test_full_batches_of_all_stages_are_multiples_of_each_other() -> None:
    times = LatencyModel((1, 2, 3, 4, 6), np.array([[1.0, 1.5, 1.6, 3.0, 6.0], [1.0] * 5]))
    assert (times.full(0), times.full(1)) == (2, 6)


def test_no_image_is_faster_than_in_the_best_batch() -> None:
    assert sizes(1.0, 1.0, 4.0, 8.0).best == [0.5]


@given(
    st.lists(st.floats(1e-4, 1.0), min_size=4, max_size=4),
    st.integers(1, 20),
)
def test_what_is_taken_is_at_least_half_and_no_worse_than_all(seconds: list[float], waiting: int) -> None:
    times = sizes(*seconds)
    taken, most = times.take(0, waiting), min(waiting, 8)
    assert 1 <= taken <= most
    assert 2 * taken >= min(most, times.full(0))
    rate, whole = taken / times.predict(0, taken), most / times.predict(0, most)
    assert rate >= whole
    assert times.worth(0, waiting) == pytest.approx(rate * times.best[0])
    assert times.worth(0, waiting) <= 1 + 1e-9


def test_sizes_follow_what_is_measured() -> None:
    learning = sizes(1.0, 1.0, 1.0, 1.0)
    for _ in range(200):
        learning.learn(0, 8, 3.0)
        learning.learn(0, 4, 1.0)
    assert (learning.full(0), learning.take(0, 8)) == (4, 4)


def test_the_margin_covers_nineteen_batches_of_twenty() -> None:
    learning, rng, inside = sizes(1.0, 1.0, 1.0, 1.0), np.random.default_rng(0), []
    for seconds in rng.uniform(0.8, 1.2, 20_000):
        inside.append(seconds <= learning.predict(0, 1) * learning.margin)
        learning.learn(0, 1, seconds)
    assert np.mean(inside[2000:]) == pytest.approx(0.95, abs=0.02)
    assert 1.0 < learning.margin < 1.3


def test_the_margin_stays_within_reason() -> None:
    steady = sizes(1.0, 1.0, 1.0, 1.0)
    for _ in range(2000):
        steady.learn(0, 1, 1.0)
    assert steady.margin == 1.0
    for turn in range(2000):
        steady.learn(0, 1, 1000.0 if turn % 2 else 1.0)
    assert steady.margin <= 3.0


def test_the_largest_batch_that_is_short_enough() -> None:
    times = sizes(1.0, 2.0, 4.0, 8.0)
    times.margin = 1.5
    assert [times.longest_within(0, left) for left in (1.0, 1.5, 3.1, 100.0)] == [0, 1, 2, 8]


def test_without_measurements_the_fuller_the_better() -> None:
    unknown = sizes(0.0, 0.0, 0.0, 0.0)
    assert (unknown.full(0), unknown.take(0, 5)) == (8, 5)
    assert unknown.predict(0, 8) < 1e-6


def estimate() -> LoadEstimate:
    """An image takes 1, 10 and 100 seconds in the best batches."""
    return LoadEstimate(3, LatencyModel((1, 2), np.array([[3.0, 2.0], [30.0, 20.0], [100.0, 300.0]])))


def test_before_anything_is_known_everything_goes_to_the_end() -> None:
    assert estimate().per_image() == [111.0, 110.0, 100.0]
    assert estimate().seconds([2, 0, 1]) == 322.0


def test_what_leaves_early_needs_no_more() -> None:
    mine = estimate()
    for _ in range(40):
        mine.ran(0, MEMORY, MEMORY // 2)
        mine.ran(1, MEMORY, 0)
    assert mine.per_image() == pytest.approx([6.0, 10.0, 100.0], rel=1e-3)


def test_the_newest_thousand_outweigh_what_was_before() -> None:
    mine = estimate()
    for _ in range(40):
        mine.ran(0, MEMORY, 0)
    mine.ran(0, MEMORY, MEMORY)
    assert mine.per_image()[0] == pytest.approx(1 + 110 / 2, rel=1e-3)


def test_work_is_counted_at_the_best_rates_whatever_the_batches() -> None:
    mine = estimate()
    mine.ran(0, 1, 1)
    mine.ran(1, 2, 1)
    mine.ran(2, 1, 0)
    assert mine.work_seconds == 1 + 20 + 100


def test_running_images_still_need_the_later_stages() -> None:
    assert [estimate().later(stage, 2) for stage in (0, 1, 2)] == [220.0, 200.0, 0.0]


def test_one_stage() -> None:
    mine = LoadEstimate(1, LatencyModel((4,), np.array([[8.0]])))
    assert mine.per_image() == [2.0]
    mine.ran(0, 4, 0)
    assert mine.seconds([3]) == 6.0
