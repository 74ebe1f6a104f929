"""What the door lets in, and when the refused may come back: with a clock that only the test moves."""

import heapq
from collections.abc import Callable

import numpy as np
import pytest

from msmlp.service.engine.admission import Admission
from msmlp.service.engine.door import MOST_BYTES, REQUEST_BYTES, Bookings, Door
from msmlp.service.engine.messages import Load
from msmlp.service.errors import OverloadedError

TICK = 0.1
BODY = 10_000
SECONDS = 0.01
"""What a request takes of the loop."""


class Loop:
    """An event loop that does one request after the other, with the real door and bookings."""

    def __init__(self, max_wait: float = 2.0) -> None:
        self.admission = Admission(max_wait)
        self.now = self.cpu = 0.0
        self.waits: list[float] = []
        self.refused = 0
        self._queue: list[tuple[float, float, float]] = []  # when it came, its work, seconds still to do
        self._looked = 0.0
        self.admission.look(0.0, 0.0, 0.0)

    def arrive(self, size: int = BODY, seconds: float = SECONDS) -> int | None:
        """Retry-After of a refused request; None when it was let in."""
        door = self.admission.door
        if door.closed(self.now):
            self.refused += 1
            return self.admission.turn_away(size, self.now).retry_after
        self._queue.append((self.now, door.enter(size), seconds))
        return None

    def run_until(self, end: float) -> None:
        while self.now < end:
            step = min(end - self.now, self._looked + TICK - self.now, self._queue[0][2] if self._queue else 1.0)
            self.now += step
            if self._queue:
                self.cpu += step
                since, work, left = self._queue[0]
                self._queue[0] = since, work, left - step
                if left - step < 1e-9:
                    self._queue.pop(0)
                    self.admission.door.leave(work)
                    self.waits.append(self.now - since)
            if self.now >= self._looked + TICK - 1e-9:
                self._looked = self.now
                self.admission.look(self.now, self.cpu, 0.0)


def offer(loop: Loop, load: float, seconds: float, seed: int = 0) -> None:
    rng, end = np.random.default_rng(seed), loop.now + seconds
    while (due := loop.now + rng.exponential(SECONDS / load)) < end:
        loop.run_until(due)
        loop.arrive()


def test_under_its_capacity_nothing_is_refused() -> None:
    loop = Loop()
    offer(loop, 0.9, 60)
    assert loop.refused == 0


@pytest.mark.parametrize("load", [1.5, 3.0, 10.0])
def test_under_overload_what_was_let_in_waits_for_no_longer_than_it_may(load: float) -> None:
    loop = Loop()
    offer(loop, load, 30)
    goodput = len(loop.waits) / (30 / SECONDS)
    assert goodput > 0.98, "the loop is never idle"
    assert np.percentile(loop.waits, 99) < 2 * 2.0
    assert 1.0 < np.median(loop.waits[len(loop.waits) // 2 :]) < 2.5, "and the door is shut no earlier than it must"


def test_a_longest_wait_of_zero_is_none() -> None:
    loop = Loop(max_wait=0)
    offer(loop, 3.0, 10)
    assert loop.refused == 0


def test_alone_any_body_is_let_in() -> None:
    loop = Loop(max_wait=0.001)
    offer(loop, 3.0, 5)
    assert loop.refused
    loop.run_until(loop.now + 1)
    assert loop.admission.door.work == 0
    assert loop.arrive(64 * 2**20) is None


def test_a_large_body_among_small_ones_does_not_shut_the_door() -> None:
    loop = Loop()
    offer(loop, 0.9, 5)
    for _ in range(4):
        loop.arrive(64 * 2**20)
    assert loop.arrive() is None
    assert loop.admission.door.enter(64 * 2**20) == REQUEST_BYTES + MOST_BYTES


def test_a_bad_moment_is_forgotten() -> None:
    door = Door(2.0)
    door.look(0.0, 0.0, 0.0)
    door.leave(door.enter(1000))
    door.look(1.0, 1.0, 0.0)  # a second for one small body
    work = door.enter(10_000)
    assert door.work > door.most
    for n in range(1, 11):
        door.look(1 + n * TICK, 1.0, 0.0)
    assert door.work <= door.most
    assert door.wait < 2.0
    door.leave(work)


def test_the_loops_lag_is_a_wait_and_fades() -> None:
    admission = Admission(2.0)
    admission.look(0.0, 0.0, 0.0)
    admission.look(1.5, 0.0, 1.4)
    load = Load.none(1)
    assert admission.wait(load) == pytest.approx(1.4)
    assert admission.backlog(load) == 0, "it is no device time"
    for n in range(20):
        admission.look(1.6 + n * TICK, 0.0, 0.0)
    assert admission.wait(load) < 0.05


# --- Retry-After -----------------------------------------------------------------------------------------------------


def returns(loop: Loop, until: float, arrivals: Callable[[], float]) -> tuple[int, int]:
    """Clients come at times that `arrivals` gives (inf: none any more), and come back when they are told → how many
    came back, and how many of those were let in."""
    events: list[tuple[float, int, bool]] = []
    number, came, let_in = 0, 0, 0
    heapq.heappush(events, (arrivals(), number, False))
    while events and events[0][0] < until:
        due, _, again = heapq.heappop(events)
        loop.run_until(due)
        told = loop.arrive()
        came, let_in = came + again, let_in + (again and told is None)
        if told is not None:
            number += 1
            heapq.heappush(events, (due + told, number, True))
        if not again:
            number += 1
            heapq.heappush(events, (arrivals(), number, False))
    return came, let_in


@pytest.mark.parametrize("max_wait", [0.2, 2.0, 5.0])
@pytest.mark.parametrize("clients", [1000, 2000])
def test_a_burst_that_is_refused_is_let_in_when_it_comes_back(max_wait: float, clients: int) -> None:
    loop = Loop(max_wait)
    offer(loop, 0.9, 10)  # its pace is known
    times = iter((loop.now + np.sort(np.random.default_rng(1).uniform(0, 0.5, clients))).tolist())
    came, let_in = returns(loop, loop.now + 70, lambda: next(times, np.inf))
    assert came > clients / 5
    assert let_in >= 0.8 * came


def test_under_an_overload_that_ends_those_told_to_come_back_are_let_in() -> None:
    loop, rng, now = Loop(), np.random.default_rng(2), 0.0

    def arrivals() -> float:  # 150 % for ten seconds, then 50 %
        nonlocal now
        now += float(rng.exponential(SECONDS / (1.5 if now < 10 else 0.5)))
        return now

    came, let_in = returns(loop, 90, arrivals)
    assert came > 100
    assert let_in >= 0.8 * came


def test_retry_after_is_longer_the_more_were_refused_and_never_above_a_minute() -> None:
    bookings = Bookings(2.0)
    told = [bookings.book(100.0, 0.5, 0.1) for _ in range(2000)]
    assert (min(told), max(told)) == (1, 60)
    assert told.count(1) == 9, "as many as fit into a second beside others"
    fit, rest = told[: 9 * 60], told[9 * 60 :]
    assert fit == sorted(fit)
    assert {rest.count(after) for after in range(31, 61)} <= {48, 49}, "the rest is spread, lest all come together"
    assert min(rest) == 31


def test_slots_that_are_over_are_forgotten() -> None:
    bookings = Bookings(2.0)
    bookings.look(0.0, 0.0)
    for second in range(1000):
        bookings.book(float(second), 0.0, 0.5)
        bookings.look(second + 0.5, 0.5)
    assert len(bookings._booked) <= 2 * 62


def test_what_the_device_cannot_do_in_time_shuts_the_door_for_a_moment() -> None:
    admission, load = Admission(2.0), Load((0,), (np.inf,), backlog_seconds=1.99, seconds_per_image=0.01)
    admission.permits = 1000
    door = admission.door
    work = door.enter(BODY)
    admission.admit(1, Load.none(1))
    admission.inside = 1
    with pytest.raises(OverloadedError, match="2090 ms"):
        admission.admit(10, load, 100.0)
    assert door.closed(100.08), "until five hundredths of the longest wait were done"
    assert not door.closed(100.1)
    with pytest.raises(OverloadedError, match="2500 ms"):
        admission.admit(150, Load((0,), (np.inf,), backlog_seconds=1.0, seconds_per_image=0.01), 200.0)
    assert not door.closed(200.0), "for smaller requests there is room"
    admission.door.full(300.0, 5.0, 1.0)
    assert door.closed(300.0)
    door.reopen(1.95)
    assert door.closed(300.0)
    door.reopen(1.0)
    assert not door.closed(300.0), "clients have left, or it was faster than predicted"
    admission.door.full(300.0, 5.0, 1.0)
    door.leave(work)
    assert not door.closed(300.0), "alone, any is let in"


def test_a_refusal_at_the_door_says_the_wait() -> None:
    loop = Loop()
    offer(loop, 5.0, 10)
    loop.admission.door.enter(BODY)
    error = loop.admission.turn_away(BODY, loop.now)
    assert isinstance(error, OverloadedError)
    assert error.reason == "door"
    assert "the predicted wait is" in str(error)
    assert "the limit 2000 ms" in str(error)
