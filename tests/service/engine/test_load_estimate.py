import numpy as np
import pytest

from msmlp.service.engine.latency import MEMORY, LatencyModel, LoadEstimate


def backlog() -> Backlog:
    """An image takes 1, 10 and 100 seconds in the best batches."""
    return LoadEstimate(3, LatencyModel((1, 2), np.array([[3.0, 2.0], [30.0, 20.0], [100.0, 300.0]])))


def test_before_anything_is_known_everything_goes_to_the_end() -> None:
    assert backlog().an_image() == [111.0, 110.0, 100.0]
    assert backlog().seconds([2, 0, 1]) == 322.0


def test_what_leaves_early_needs_no_more() -> None:
    mine = backlog()
    for _ in range(40):
        mine.ran(0, MEMORY, MEMORY // 2)
        mine.ran(1, MEMORY, 0)
    assert mine.an_image() == pytest.approx([6.0, 10.0, 100.0], rel=1e-3)


def test_the_newest_thousand_outweigh_what_was_before() -> None:
    mine = backlog()
    for _ in range(40):
        mine.ran(0, MEMORY, 0)
    mine.ran(0, MEMORY, MEMORY)
    assert mine.an_image()[0] == pytest.approx(1 + 110 / 2, rel=1e-3)


def test_work_is_counted_at_the_best_rates_whatever_the_batches() -> None:
    mine = backlog()
    mine.ran(0, 1, 1)
    mine.ran(1, 2, 1)
    mine.ran(2, 1, 0)
    assert mine.work_seconds == 1 + 20 + 100


def test_who_is_aboard_needs_the_later_stages_still() -> None:
    assert [backlog().later(stage, 2) for stage in (0, 1, 2)] == [220.0, 200.0, 0.0]


def test_one_stage() -> None:
    mine = LoadEstimate(1, LatencyModel((4,), np.array([[8.0]])))
    assert mine.an_image() == [2.0]
    mine.ran(0, 4, 0)
    assert mine.seconds([3]) == 6.0
