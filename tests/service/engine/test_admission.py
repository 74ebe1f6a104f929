"""Who is let in, and when the others may come again: by hand."""

from dataclasses import replace

import pytest

from msmlp.service.engine.admission import Admission, Refusal
from msmlp.service.engine.messages import Load

LOAD = replace(Load.none(3), seconds_per_image=0.01)


def admission(max_wait: float = 2.0, *, capacity: int = 1000, decoding: int = 0, inside: int = 0) -> Admission:
    """One with images in flight: some are still decoded, some in the engine."""
    made = Admission(max_wait)
    made.capacity = capacity
    made.take(decoding + inside)
    made.enter(inside)
    return made


def refused(made: Admission, images: int, load: Load = LOAD) -> Refusal:
    refusal = made.refusal(images, load)
    assert refusal is not None
    return refusal


def test_places_are_counted_in_images() -> None:
    full = admission(capacity=10, inside=8)
    assert full.refusal(2, LOAD) is None
    refusal = refused(full, 3)
    assert (refusal.reason, refusal.detail) == ("capacity", "8 of 10 places are taken, 3 wanted")
    full.give_back(1)
    assert full.refusal(3, LOAD) is None
    assert refused(admission(capacity=10), 11).reason == "capacity", "even where nobody is in flight"


def test_who_would_wait_too_long_is_refused_and_the_text_says_how_long() -> None:
    load = replace(LOAD, backlog_seconds=1.5)
    busy = admission(inside=150)
    assert busy.refusal(50, load) is None
    refusal = refused(busy, 51, load)
    assert refusal.reason == "wait"
    assert refusal.detail == "the answer is predicted to take 2010 ms, allowed: 2000 ms"


def test_images_that_are_still_decoded_count_as_waiting() -> None:
    load = replace(LOAD, backlog_seconds=0.5)
    made = admission(decoding=100, inside=50)
    assert made.backlog(load) == pytest.approx(0.5 + 100 * 0.01)
    assert made.refusal(50, load) is None
    assert refused(made, 51, load).reason == "wait"
    made.enter(100)
    assert made.backlog(load) == 0.5, "from then on the engine counts them"
    made.leave(150)
    made.give_back(150)
    assert made.backlog(load) == 0.5
    assert made.inflight == 0


def test_who_finds_nobody_in_flight_is_let_in_however_long_it_takes() -> None:
    assert admission(max_wait=0.001).refusal(500, LOAD) is None
    assert refused(admission(max_wait=0.001, inside=1), 500).reason == "wait"


def test_without_a_longest_wait_places_alone_count() -> None:
    load = replace(LOAD, backlog_seconds=1e6)
    assert admission(max_wait=0, inside=10).refusal(990, load) is None
    assert refused(admission(max_wait=0, inside=10), 991, load).reason == "capacity"


@pytest.mark.parametrize(("backlog", "seconds"), [(2.0, 1), (2.5, 1), (4.2, 3), (12.0, 11), (1e9, 60)])
def test_come_again_when_you_would_have_been_let_in(backlog: float, seconds: int) -> None:
    refusal = refused(admission(inside=10), 1, replace(LOAD, backlog_seconds=backlog))
    assert refusal.retry_after == seconds
    later = replace(LOAD, backlog_seconds=backlog - seconds)
    assert backlog == 1e9 or admission(inside=10).refusal(1, later) is None


@pytest.mark.parametrize(("images", "seconds"), [(1, 1), (250, 3), (1000, 10)])
def test_places_come_free_at_the_engines_pace(images: int, seconds: int) -> None:
    assert refused(admission(inside=1000), images).retry_after == seconds
    assert refused(admission(inside=1000), images, Load.none(3)).retry_after == 1, "nothing is known of the pace yet"


def test_only_what_is_inside_the_engine_takes_its_places() -> None:
    made = admission(capacity=100, decoding=30, inside=20)
    assert made.share == 0.2
    assert Admission().share == 0, "capacity is not known yet"


def test_all_and_the_degraded_are_counted() -> None:
    made = admission()
    made.take(3)
    made.take(5, degraded=True)
    made.give_back(8)
    assert (made.let_in, made.degraded) == (8, 5)
