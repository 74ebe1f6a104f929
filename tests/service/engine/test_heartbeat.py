"""Signs of life, seen at looks a tenth of a second apart."""

import pytest

from msmlp.service.engine.heartbeat import LOOK_SECONDS, SILENCE_SECONDS, Heartbeat, longest_silence


class Looks:
    def __init__(self) -> None:
        self.heartbeat, self.now = Heartbeat(), 1000.0

    def see(self, *beats: float, every: float = LOOK_SECONDS) -> float:
        """→ the age after the last."""
        for beat in beats:
            self.now += every
            self.heartbeat.look(beat, self.now)
        return self.heartbeat.age


def test_only_silence_has_an_age() -> None:
    looks = Looks()
    assert looks.see(*[0.0] * 100) == 0, "it has not begun: the warm-up may take long"
    assert looks.see(*range(1, 100)) == 0
    assert looks.see(*[99] * 20) == pytest.approx(2.0)
    assert looks.see(100) == 0
    assert looks.see(*[100] * 5) == pytest.approx(0.5)


def test_one_that_is_gone_is_silent_until_another_comes() -> None:
    looks = Looks()
    looks.see(7)
    assert looks.see(*[0.0] * 10) == pytest.approx(1.0)
    assert looks.see(3) == 0


def test_whoever_was_frozen_has_seen_no_silence() -> None:
    looks = Looks()
    looks.see(7)
    assert looks.see(7, every=3600) < 1
    assert looks.see(7, every=3600) < 1


def test_a_slow_engine_may_be_silent_for_longer() -> None:
    assert longest_silence(0.001) == SILENCE_SECONDS
    assert longest_silence(3.0) == 30.0
