import numpy as np
import pytest

from service.engine.times import StageTimes

BUCKETS = (1, 2, 4)


def times() -> StageTimes:
    return StageTimes(BUCKETS, np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))


def test_a_batch_takes_what_its_bucket_takes() -> None:
    assert [times().predict(0, images) for images in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 3.0]
    assert [times().predict(1, images) for images in (1, 2, 3, 4)] == [10.0, 20.0, 30.0, 30.0]


def test_more_than_a_batch_counts_as_one_full_batch() -> None:
    assert times().predict(1, 1000) == 30.0


def test_what_is_measured_is_learnt_by_its_stage_and_bucket_alone() -> None:
    learning = times()
    for _ in range(100):
        learning.learn(1, 3, 50.0)
    assert learning.predict(1, 4) == pytest.approx(50.0, rel=1e-3)
    assert [learning.predict(1, 1), learning.predict(1, 2), learning.predict(0, 4)] == [10.0, 20.0, 3.0]


def test_a_stray_batch_says_little() -> None:
    learning = times()
    learning.learn(0, 1, 11.0)
    assert 1.0 < learning.predict(0, 1) <= 2.0


def test_the_warm_ups_measurements_stay_as_they_are() -> None:
    measured = np.ones((1, 3))
    StageTimes(BUCKETS, measured).learn(0, 1, 100.0)
    assert (measured == 1).all()
