"""Brown-out by hand and under simulated loads, with a clock of its own."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.engine.brownout import CALM, FITS, LEVELS, QUIET, Brownout, Totals
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.settings import DEFAULT_WEIGHTS
from tests.service.engine.overload import Look, Server

HIGH = 0.5
MAX_WAIT = 2.0
LOW = HIGH / 4
TICK = 0.125  # a power of two: sums of it are exact
HALVING = tuple(2.0**-level for level in range(LEVELS + 1))
"""Costs: each level half of the one before."""


class Clock:
    """Shows a controller one wait, load and share of degraded images for some seconds at a time."""

    def __init__(self, high: float = HIGH, costs: tuple[float, ...] = HALVING) -> None:
        self.brownout, self.now = Brownout(high, MAX_WAIT, costs), 100.0
        self._work, self._images, self._degraded = 0.0, 0, 0

    def see(
        self,
        wait: float,
        seconds: float,
        *,
        load: float = 0.0,
        degraded: float = 1.0,
        permits: float = 0.0,
        quiet: bool = False,
    ) -> list[int]:
        """→ the level after every tick."""
        levels = []
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self._work += load * TICK
            self._images += 100
            self._degraded += round(100 * degraded)
            self.brownout.update(self.now, wait, Totals(self._work, self._images, self._degraded), permits, quiet=quiet)
            levels.append(self.brownout.level)
        return levels

    def raised_to(self, level: int) -> "Clock":
        """Itself, after a wait that demands this level and no more."""
        end = 0.75 * MAX_WAIT
        self.see(self.brownout.high + (level + 0.5) / LEVELS * (end - self.brownout.high), TICK)
        assert self.brownout.level == level
        return self


def test_calm_is_no_brown_out() -> None:
    assert set(Clock().see(0.0, 60)) == {0}
    assert set(Clock().see(HIGH, 60)) == {0}, "overload is more than that"


def test_a_wait_that_does_not_drain_raises_a_level_each_high_seconds_up_to_the_last() -> None:
    clock, wait = Clock(), HIGH + 0.01
    clock.see(wait, TICK)  # when it begins
    for level in range(1, LEVELS + 1):
        levels = clock.see(wait, HIGH)
        assert levels == [level - 1] * (len(levels) - 1) + [level]
    assert set(clock.see(wait, 60)) == {LEVELS}


def test_a_wait_that_drains_raises_nothing() -> None:
    clock, wait = Clock().raised_to(3), 0.9
    while wait > HIGH:
        wait -= 2 * (1 - FITS) * TICK
        assert clock.see(wait, TICK) == [3]


def test_the_last_level_comes_well_before_any_refusal() -> None:
    assert Clock().see(0.75 * MAX_WAIT, TICK) == [LEVELS]
    clock = Clock()
    assert [clock.see(wait, TICK)[0] for wait in (0.6, 0.7, 0.9, 1.1, 1.3)] == [0, 1, 3, 4, 6]


def test_permits_that_run_out_count_as_a_wait() -> None:
    assert set(Clock().see(0.0, 60, permits=0.5)) == {0}
    assert Clock().see(0.0, TICK, permits=0.76) == [LEVELS // 2]
    assert Clock().see(0.0, TICK, permits=1.0) == [LEVELS]


def test_calm_lowers_it_slowly_down_to_none() -> None:
    clock = Clock().raised_to(LEVELS)
    clock.see(0.0, TICK)
    for level in range(LEVELS, 0, -1):
        levels = clock.see(0.0, CALM)
        assert levels == [level] * (len(levels) - 1) + [level - 1]
    assert set(clock.see(0.0, 60)) == {0}


def test_between_the_two_it_stays() -> None:
    clock = Clock().raised_to(3)
    assert set(clock.see((HIGH + LOW) / 2, 600)) == {3}
    assert set(clock.see(HIGH, 60)) == set(clock.see(LOW, 60)) == {3}


def test_calm_lowers_nothing_that_it_would_have_to_take_back() -> None:
    """Each level halves the cost here: what keeps the device busy for half of the time fills it one level lower."""
    clock = Clock().raised_to(5)
    clock.see(HIGH, 10, load=0.5)  # so that the load is known
    assert set(clock.see(0.0, 600, load=0.5)) == {5}
    assert any(clock.see(0.0, TICK, load=0.4) == [4] for _ in range(100))
    assert set(clock.see(0.0, 600, load=0.8)) == {4}


@pytest.mark.parametrize(("load", "degraded", "falls"), [(0.7, 0.1, True), (0.7, 0.5, False), (0.9, 0.0, False)])
def test_only_what_was_degraded_costs_more_at_a_lower_level(load: float, degraded: float, falls: bool) -> None:
    clock = Clock().raised_to(5)
    clock.see(HIGH, 10, load=load, degraded=degraded)
    assert clock.see(0.0, 600, load=load, degraded=degraded)[-1] == (0 if falls else 5)


def test_a_short_peak_and_a_short_calm_change_nothing() -> None:
    clock = Clock()
    for _ in range(50):
        assert set(clock.see(HIGH + 0.01, HIGH)) == {0}
        clock.see(HIGH, TICK)
    clock.raised_to(2)
    for _ in range(50):
        assert set(clock.see(0.0, CALM)) == {2}
        clock.see(LOW, TICK)


def test_it_ends_with_its_cause() -> None:
    clock = Clock().raised_to(LEVELS)
    clock.see(1.0, 10, load=1.0)
    assert clock.see(0.0, TICK, load=0.1, quiet=True) == [LEVELS]
    levels = clock.see(0.0, 1.0, load=0.1, quiet=True)
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == {LEVELS, 0}, "at once, and not a level at a time"
    assert levels.index(0) == round(QUIET / TICK) - 2, "within a second"
    assert set(clock.see(0.0, 60, load=0.1)) == {0}


def test_a_wait_or_a_meeting_is_not_the_end() -> None:
    clock = Clock().raised_to(LEVELS)
    for wait, quiet in [(LOW, True), (0.0, False)] * 20:
        assert set(clock.see(0.0, QUIET - TICK, load=0.95, quiet=True)) == {LEVELS}
        assert clock.see(wait, TICK, load=0.95, quiet=quiet) == [LEVELS]


def test_zero_turns_it_off() -> None:
    assert set(Clock(high=0).see(1e9, 60)) == {0}


def test_it_begins_at_half_of_the_longest_wait_at_the_latest() -> None:
    late = Clock(high=10 * MAX_WAIT)
    assert late.see(0.5 * MAX_WAIT, 60)[-1] == 0
    assert late.see(0.75 * MAX_WAIT, TICK) == [LEVELS]


def levels_of(looks: list[Look]) -> list[int]:
    return [look.level for look in looks]


def turns(levels: list[int]) -> int:
    """How often it changes from rising to falling or back."""
    moves = np.diff(levels)
    return int(np.count_nonzero(np.diff(np.sign(moves[moves != 0]))))


SEEN = st.tuples(
    st.sampled_from((0.0, LOW, 0.3, HIGH, 0.6, 0.9, 1.4, 100.0)),
    st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)),
    st.sampled_from((0.0, 0.5, 1.0)),
    st.integers(1, 40),
)


@given(st.lists(st.tuples(SEEN, st.booleans()), max_size=40))
def test_quiet_ends_it_and_nothing_else_lets_the_level_fall_by_more_than_one(
    seen: list[tuple[tuple[float, float, float, int], bool]],
) -> None:
    clock, level, since = Clock(), 0, 0.0
    for (wait, load, degraded, ticks), quiet in seen:
        for now in clock.see(wait, ticks * TICK, load=load, degraded=degraded, quiet=quiet):
            since = since + TICK if quiet and wait < LOW else 0
            assert now >= level - 1 or (now == 0 and since >= QUIET)
            assert now == 0 or since < QUIET
            level = now


@given(st.lists(SEEN, max_size=40))
def test_within_any_calm_seconds_the_level_turns_round_at_most_once(
    seen: list[tuple[float, float, float, int]],
) -> None:
    clock, levels, waits = Clock(), [0], [0.0]
    for wait, load, degraded, ticks in seen:
        levels += clock.see(wait, ticks * TICK, load=load, degraded=degraded)
        waits += [wait] * ticks
    assert min(levels) >= 0
    assert max(levels) <= LEVELS
    moves = np.diff(levels)
    assert all(waits[i + 1] > HIGH for i in np.flatnonzero(moves > 0))
    assert all(waits[i + 1] < LOW for i in np.flatnonzero(moves < 0))
    assert (moves >= -1).all()
    for start in np.flatnonzero(moves):
        assert turns(levels[start : start + 1 + round(CALM / TICK)]) <= 1


@pytest.fixture(scope="module")
def costs() -> tuple[float, ...]:
    """Of the shipped weights' default policy."""
    weights = load_weights(Path(DEFAULT_WEIGHTS))
    return OperatingPoints(load_calibration(weights), weights.manifest.gflops_cumulative, "balanced").costs()


@pytest.mark.parametrize(
    ("load", "permits"), [(1.1, 1_000_000), (1.5, 1_000_000), (1.5, 700), (2.0, 1_000_000), (2.5, 1_000_000)]
)
def test_a_step_in_load_is_met_and_kept_and_left_again(costs: tuple[float, ...], load: float, permits: int) -> None:
    """50 % → more than level 0 can do, and less than the cheapest point can → 50 %."""
    server = Server(costs, max_wait=MAX_WAIT, permits=permits)
    before, during, after = (server.run(seconds, share) for seconds, share in ((4, 0.5), (40, load), (30, 0.5)))
    assert set(levels_of(before)) == {0}
    assert max(look.wait for look in during) < MAX_WAIT
    assert server.shed == 0, "the cheapest point is enough, so no image is refused"
    assert turns(levels_of(before + during + after)) <= 1, "up, then down for good"
    settled = levels_of(during[len(during) // 2 :])
    assert len(set(settled)) == 1, "and at rest between"
    assert settled[0] > 0
    assert max(look.wait for look in during[len(during) // 2 :]) < HIGH
    assert levels_of(after)[-1] == 0


def test_more_than_the_cheapest_point_can_do_is_shed_from_the_last_level_only(costs: tuple[float, ...]) -> None:
    server = Server(costs, max_wait=MAX_WAIT)
    looks = server.run(20, 1.3 * costs[0] / costs[-1])
    assert server.shed > 0
    assert {look.level for look in looks if look.shed} == {LEVELS}
    assert max(look.wait for look in looks) <= MAX_WAIT + TICK, "and admitted images are answered in time"


def test_where_half_cannot_be_degraded_the_others_are_and_the_rest_is_shed(costs: tuple[float, ...]) -> None:
    server = Server(costs, max_wait=MAX_WAIT, degradable=0.5)
    looks = server.run(20, 2.0) + server.run(40, 0.5)
    assert server.shed > 0
    assert {look.level for look in looks if look.shed and look.now < 20} == {LEVELS}
    assert max(look.wait for look in looks) <= MAX_WAIT + TICK
    assert turns(levels_of(looks)) == 1
    assert looks[-1].level == 0


def test_after_a_burst_an_idle_server_is_at_level_0_within_a_second(costs: tuple[float, ...]) -> None:
    server = Server(costs, max_wait=MAX_WAIT)
    burst = server.run(1 / 64, 0.8 * MAX_WAIT * 64, request=400)
    assert max(levels_of(server.run(1.0, 0.0))) > LEVELS // 2
    rest = server.run(6.0, 0.0)
    ended = next(look.now for look in rest if look.wait < 1e-9)
    assert burst[-1].shed == 0
    assert all(look.level == 0 for look in rest if look.now >= ended + 1)


@pytest.mark.parametrize("load", [0.5, 0.7, 1.3, 1.5, 2.0])
def test_random_arrivals_do_not_make_it_swing(costs: tuple[float, ...], load: float) -> None:
    server = Server(costs, max_wait=MAX_WAIT, seed=1)
    looks = server.run(120, load, request=32, poisson=True)
    assert server.shed == 0
    assert max(look.wait for look in looks) < MAX_WAIT
    assert turns(levels_of(looks)) <= 3, "once up and down, and a correction in two minutes"
    assert (max(levels_of(looks)) == 0) == (load < 1)


def test_totals_that_fall_because_a_front_end_has_ended_say_nothing_of_the_share_of_degraded_images() -> None:
    brownout = Brownout(0.5, 2.0, [1.0] * (LEVELS + 1))
    for now, images, degraded in [(0.0, 0, 0), (100.0, 100, 50), (101.0, 20, 10), (102.0, 20, 0)]:
        brownout.update(now, 0.0, Totals(0.0, images, degraded), 0.0)
    assert brownout._degraded == pytest.approx(0.5)
