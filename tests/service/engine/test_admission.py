"""Who is admitted, and when the others may retry."""

from dataclasses import replace

import pytest

from msmlp.service.engine.admission import Admission, Refusal
from msmlp.service.engine.messages import Load

LOAD = replace(Load.none(3), seconds_per_image=0.01)


def admission(max_wait: float = 2.0, *, permits: int = 1000, decoding: int = 0, inside: int = 0) -> Admission:
    """One with images in flight: some are still decoded, some in the engine."""
    made = Admission(max_wait)
    made.permits = permits
    made.acquire(decoding + inside)
    made.enter(inside)
    return made


def refused(made: Admission, images: int, load: Load = LOAD) -> Refusal:
    refusal = made.refusal(images, load)
    assert refusal is not None
    return refusal


def test_permits_are_counted_in_images() -> None:
    full = admission(permits=10, inside=8)
    assert full.refusal(2, LOAD) is None
    refusal = refused(full, 3)
    assert (refusal.reason, refusal.detail) == (
        "capacity",
        "the service is full: 8 of 10 images in flight, 3 more requested",
    )
    full.release(1)
    assert full.refusal(3, LOAD) is None
    assert refused(admission(permits=10), 11).reason == "capacity", "even with nothing in flight"


def test_images_that_would_wait_too_long_are_refused_with_the_predicted_wait() -> None:
    load = replace(LOAD, backlog_seconds=1.5)
    busy = admission(inside=150)
    assert busy.refusal(50, load) is None
    refusal = refused(busy, 51, load)
    assert refusal.reason == "wait"
    assert refusal.detail == "the predicted wait is 2010 ms, the limit 2000 ms"


def test_images_that_are_still_decoded_count_as_waiting() -> None:
    load = replace(LOAD, backlog_seconds=0.5)
    made = admission(decoding=100, inside=50)
    assert made.backlog(load) == pytest.approx(0.5 + 100 * 0.01)
    assert made.refusal(50, load) is None
    assert refused(made, 51, load).reason == "wait"
    made.enter(100)
    assert made.backlog(load) == 0.5, "from then on the engine counts them"
    made.leave(150)
    made.release(150)
    assert made.backlog(load) == 0.5
    assert made.inflight == 0


def test_with_nothing_in_flight_any_wait_is_admitted() -> None:
    assert admission(max_wait=0.001).refusal(500, LOAD) is None
    assert refused(admission(max_wait=0.001, inside=1), 500).reason == "wait"


def test_without_a_longest_wait_only_permits_count() -> None:
    load = replace(LOAD, backlog_seconds=1e6)
    assert admission(max_wait=0, inside=10).refusal(990, load) is None
    assert refused(admission(max_wait=0, inside=10), 991, load).reason == "capacity"


@pytest.mark.parametrize(("backlog", "seconds"), [(2.0, 1), (2.5, 1), (4.2, 3), (12.0, 11), (1e9, 60)])
def test_retry_after_says_when_the_images_would_be_admitted(backlog: float, seconds: int) -> None:
    refusal = refused(admission(inside=10), 1, replace(LOAD, backlog_seconds=backlog))
    assert refusal.retry_after == seconds
    later = replace(LOAD, backlog_seconds=backlog - seconds)
    assert backlog == 1e9 or admission(inside=10).refusal(1, later) is None


@pytest.mark.parametrize(("images", "seconds"), [(1, 1), (250, 3), (1000, 10)])
def test_permits_are_returned_at_the_engines_pace(images: int, seconds: int) -> None:
    assert refused(admission(inside=1000), images).retry_after == seconds
    assert refused(admission(inside=1000), images, Load.none(3)).retry_after == 1, "nothing is known of the pace yet"


def test_only_images_in_the_engine_count_for_its_share() -> None:
    made = admission(permits=100, decoding=30, inside=20)
    assert made.share == 0.2
    assert Admission().share == 0, "capacity is not known yet"


def test_all_and_the_degraded_are_counted() -> None:
    made = admission()
    made.acquire(3)
    made.acquire(5, degraded=True)
    made.release(8)
    assert (made.admitted, made.degraded) == (8, 5)
