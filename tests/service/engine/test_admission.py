"""Which images are admitted, and when the others may retry."""

from dataclasses import replace

import pytest

from msmlp.service.engine.admission import Admission
from msmlp.service.engine.messages import Counts, Load
from msmlp.service.errors import OverloadedError

LOAD = replace(Load.none(3), seconds_per_image=0.01)


def admission(max_wait: float = 2.0, *, permits: int = 1000, decoding: int = 0, inside: int = 0) -> Admission:
    """One with images in flight: some are still decoded, some in the engine."""
    made = Admission(max_wait)
    made.permits = permits
    made.admit(decoding + inside, Load.none(3))
    made.inside += inside
    return made


def refused(made: Admission, images: int, load: Load = LOAD) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        made.admit(images, load)
    return caught.value


def test_permits_are_counted_in_images() -> None:
    full = admission(permits=10, inside=7)
    with full.admit(1, LOAD), full.admit(2, LOAD):
        refusal = refused(full, 3)
        assert refusal.reason == "capacity"
        assert str(refusal) == "the service is full: 10 of 10 images in flight, 3 more requested"
    full.admit(3, LOAD)
    assert refused(admission(permits=10), 11).reason == "capacity", "even with nothing in flight"


def test_permits_return_with_their_images_and_the_rest_with_the_block() -> None:
    made = admission()
    with made.admit(8, LOAD) as permits:
        made.inside += 5
        permits.leave(2)
        assert (made.inflight, made.inside) == (6, 3)
        permits.leave(3)
    assert (made.inflight, made.inside) == (0, 0)


def test_images_that_would_wait_too_long_are_refused_with_the_predicted_wait() -> None:
    load = replace(LOAD, backlog_seconds=1.5)
    busy = admission(inside=150)
    refusal = refused(busy, 51, load)
    assert refusal.reason == "wait"
    assert str(refusal) == "the predicted wait is 2010 ms, the limit 2000 ms"
    busy.admit(50, load)


def test_images_that_are_still_decoded_count_as_waiting() -> None:
    load = replace(LOAD, backlog_seconds=0.5)
    made = admission(decoding=100, inside=50)
    assert made.backlog(load) == pytest.approx(0.5 + 100 * 0.01)
    assert refused(made, 51, load).reason == "wait"
    made.inside += 100
    assert made.backlog(load) == 0.5, "from then on the engine counts them"


def test_with_nothing_in_flight_any_wait_is_admitted() -> None:
    admission(max_wait=0.001).admit(500, LOAD)
    assert refused(admission(max_wait=0.001, inside=1), 500).reason == "wait"


def test_without_a_longest_wait_only_permits_count() -> None:
    load = replace(LOAD, backlog_seconds=1e6)
    admission(max_wait=0, inside=10).admit(990, load)
    assert refused(admission(max_wait=0, inside=10), 991, load).reason == "capacity"


@pytest.mark.parametrize(("backlog", "seconds"), [(2.0, 1), (2.5, 1), (4.2, 3), (12.0, 11), (1e9, 60)])
def test_retry_after_says_when_the_images_would_be_admitted(backlog: float, seconds: int) -> None:
    refusal = refused(admission(inside=10), 1, replace(LOAD, backlog_seconds=backlog))
    assert refusal.retry_after == seconds
    if backlog < 1e9:
        admission(inside=10).admit(1, replace(LOAD, backlog_seconds=backlog - seconds))


def test_admitted_images_whose_decoding_would_take_too_long_are_refused() -> None:
    load = replace(LOAD, backlog_seconds=1.0)
    made = admission(inside=10)
    made.admit(20, load)
    made.check_decoding(20, load, 0.7, 0.5)
    with pytest.raises(OverloadedError, match="the predicted wait is 4200 ms, the limit 2000 ms") as caught:
        made.check_decoding(20, load, 3.0, 0.5)
    made.book_decoding(caught.value, 100.0)
    assert (caught.value.reason, caught.value.retry_after) == ("wait", 3)
    assert refused(made, 990).retry_after == 1, "what the device has to do is booked elsewhere"


@pytest.mark.parametrize(("clients", "own"), [(1000, 0.02), (300, 0.09), (100, 0.4)])
def test_of_those_refused_at_the_decoders_most_are_let_in_when_they_come_back(clients: int, own: float) -> None:
    """All come at once, each with `own` seconds of decoding: together less than a minute's."""
    made, queue, now, tick = Admission(2.0), 0.0, 0.0, 0.01
    made.permits, made.inflight = 1000, 100
    due, back, admitted = {0: clients}, 0, 0
    while due:
        now += tick
        queue = max(0.0, queue - tick)
        if int(now / tick) % 10 == 0:
            made.decoding.look(now, float(queue > 0))
        for step in [each for each in due if each * tick <= now]:
            for _ in range(due.pop(step)):
                back += step > 0
                try:
                    made.check_decoding(1, Load.none(3), queue + own, own)
                except OverloadedError as error:
                    made.book_decoding(error, now)
                    again = round((now + error.retry_after) / tick)
                    due[again] = due.get(again, 0) + 1
                else:
                    queue += own
                    admitted += step > 0
    assert admitted >= 0.8 * back > 0


def test_the_only_request_may_decode_for_any_time() -> None:
    alone = admission()
    alone.admit(20, LOAD)
    alone.check_decoding(20, LOAD, 1e6, 1e6)
    with pytest.raises(OverloadedError):
        alone.check_decoding(20, replace(LOAD, others=Counts(inflight=1)), 1e6, 1e6)
    without_limit = admission(max_wait=0, inside=10)
    without_limit.admit(20, LOAD)
    without_limit.check_decoding(20, LOAD, 1e6, 1e6)


@pytest.mark.parametrize(("images", "seconds"), [(1, 1), (250, 3), (1000, 10)])
def test_permits_are_returned_at_the_engines_pace(images: int, seconds: int) -> None:
    assert refused(admission(inside=1000), images).retry_after == seconds
    assert refused(admission(inside=1000), images, Load.none(3)).retry_after == 1, "nothing is known of the pace yet"


def test_only_images_in_the_engine_count_for_its_share() -> None:
    made = admission(permits=100, decoding=30, inside=20)
    assert made.share(LOAD) == 0.2
    assert Admission(0).share(LOAD) == 0, "capacity is not known yet"


def test_all_and_the_degraded_are_counted() -> None:
    made = admission()
    with made.admit(3, LOAD), made.admit(5, LOAD, degraded=True):
        pass
    assert (made.admitted, made.degraded) == (8, 5)


# --- front ends that share an engine ---------------------------------------------------------------------------------


def test_images_of_other_front_ends_count_too() -> None:
    load = replace(LOAD, others=Counts(inflight=500, inside=100, admitted=900, degraded=90))
    made = admission(decoding=30, inside=20)
    assert str(refused(made, 451, load)) == "the service is full: 550 of 1000 images in flight, 451 more requested"
    assert made.backlog(load) == pytest.approx((30 + 400) * 0.01), "the others decode too"
    assert made.share(load) == 0.12
    assert made.total(load) == Counts(550, 120, 950, 90)
    assert refused(admission(0.001), 1, load).reason == "wait", "others have images in flight"


def test_every_change_is_shown_to_the_others() -> None:
    made, shown = admission(), list[Counts]()
    made.share_with = shown.append
    with made.admit(3, LOAD, degraded=True) as permits:
        made.inside += 3
        permits.leave(1)
    assert shown == [Counts(3, 0, 3, 3), Counts(2, 2, 3, 3), Counts(0, 2, 3, 3)]
