"""Brown-out by hand, with a clock of its own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.engine.brownout import CALM, LEVELS, Brownout

HIGH = 0.5
LOW = HIGH / 4
TICK = 0.125  # a power of two: sums of it are exact


class Clock:
    """Shows a controller one wait for some seconds at a time."""

    def __init__(self, high: float = HIGH) -> None:
        self.brownout, self.now = Brownout(high), 100.0

    def see(self, wait: float, seconds: float) -> list[int]:
        """→ the level after every tick."""
        levels = []
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.brownout.update(self.now, wait)
            levels.append(self.brownout.level)
        return levels


def test_calm_is_no_brown_out() -> None:
    assert set(Clock().see(0.0, 60)) == {0}
    assert set(Clock().see(HIGH, 60)) == {0}, "overload is more than that"


def test_overload_raises_a_level_each_high_seconds_up_to_the_last() -> None:
    clock = Clock()
    clock.see(10 * HIGH, TICK)  # when it begins
    for level in range(1, LEVELS + 1):
        levels = clock.see(10 * HIGH, HIGH)
        assert levels == [level - 1] * (len(levels) - 1) + [level]
    assert set(clock.see(10 * HIGH, 60)) == {LEVELS}


def test_calm_lowers_it_slowly_down_to_none() -> None:
    clock = Clock()
    clock.see(1.0, 60)
    clock.see(0.0, TICK)
    for level in range(LEVELS, 0, -1):
        levels = clock.see(0.0, CALM)
        assert levels == [level] * (len(levels) - 1) + [level - 1]
    assert set(clock.see(0.0, 60)) == {0}
    assert CALM > HIGH


def test_between_the_two_it_stays() -> None:
    clock = Clock()
    assert set(clock.see((HIGH + LOW) / 2, 60)) == {0}
    clock.see(1.0, TICK + 3 * HIGH)
    assert set(clock.see((HIGH + LOW) / 2, 600)) == {3}
    assert set(clock.see(HIGH, 60)) == set(clock.see(LOW, 60)) == {3}


def test_a_short_peak_and_a_short_calm_change_nothing() -> None:
    clock = Clock()
    for _ in range(50):
        assert set(clock.see(1.0, HIGH)) == {0}
        clock.see(HIGH, TICK)
    clock.see(1.0, TICK + 2 * HIGH)
    for _ in range(50):
        assert set(clock.see(0.0, CALM)) == {2}
        clock.see(LOW, TICK)


def test_long_overload_does_not_keep_calm_waiting_nor_long_calm_overload() -> None:
    clock = Clock()
    clock.see(1.0, 600)
    assert clock.see(0.0, TICK + CALM)[-1] == LEVELS - 1
    clock.see(0.0, 600)
    assert clock.see(1.0, TICK + HIGH)[-1] == 1


def test_a_rare_look_counts_all_the_time_that_passed() -> None:
    brownout = Brownout(HIGH)
    brownout.update(0.0, 1.0)
    brownout.update(3.2 * HIGH, 1.0)
    assert brownout.level == 3
    brownout.update(4.0 * HIGH, 1.0)
    assert brownout.level == 4
    brownout.update(1000.0, 1.0)
    assert brownout.level == LEVELS


def test_nought_is_never() -> None:
    assert set(Clock(high=0).see(1e9, 60)) == {0}


@given(st.lists(st.tuples(st.sampled_from((0.0, LOW, 0.3, HIGH, 0.6, 100.0)), st.integers(1, 40)), max_size=30))
def test_the_level_is_one_there_is_and_moves_by_one_towards_where_it_should(waits: list[tuple[float, int]]) -> None:
    clock, before = Clock(), 0
    for wait, ticks in waits:
        for level in clock.see(wait, ticks * TICK):
            assert 0 <= level <= LEVELS
            assert level - before in ((0, 1) if wait > HIGH else (0, -1) if wait < LOW else (0,))
            before = level


def under(load: float, seconds: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Levels and waits of a queue that gets `load` images a second: the service does 100, each level a quarter more."""
    clock, queue, levels, waits = Clock(), 0.0, [], []
    for _ in range(round(seconds / TICK)):
        pace = 100 * (1 + clock.brownout.level / 4)
        queue = max(0.0, queue + (load - pace) * TICK)
        waits.append(queue / pace)
        levels += clock.see(waits[-1], TICK)
    return np.array(levels), np.array(waits)


def test_a_step_in_load_is_met_and_kept_without_swinging_wide() -> None:
    """At 180 images a second level 4 is enough and 3 is not: calm tries less now and then, and takes it back."""
    levels, waits = under(180, 300)
    settled = len(levels) // 2
    assert set(levels[settled:]) <= {2, 3, 4, 5}
    assert np.median(levels[settled:]) in (3, 4)
    assert waits[settled:].max() < 2 * HIGH
    assert np.count_nonzero(np.diff(levels[settled:])) <= 300 / 2 / CALM, "it moves no oftener than calm lets it"


def test_load_that_can_be_carried_is_no_brown_out_and_too_much_is_all_of_it() -> None:
    assert set(under(90, 60)[0]) == {0}
    assert set(under(310, 300)[0][-100:]) == {LEVELS}
