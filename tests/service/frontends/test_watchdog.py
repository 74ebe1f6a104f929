import itertools
import threading

import pytest

from msmlp.service.frontends.watchdog import Watchdog
from tests.fakes import PATIENCE_SECONDS


def test_silence_is_a_hang_and_the_log_says_where(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hangs = threading.Event()
    with Watchdog(lambda: 1.0, 0.2, hangs.set):
        assert hangs.wait(PATIENCE_SECONDS)
    assert "no sign of life for 0.2 s" in caplog.text
    assert "test_silence_is_a_hang" in capfd.readouterr().err


def test_signs_of_life_are_none() -> None:
    hangs, beats = threading.Event(), itertools.count(1)
    looked = threading.Semaphore(0)

    def beat() -> float:
        looked.release()
        return next(beats)

    with Watchdog(beat, 0.2, hangs.set):
        for _ in range(8):
            assert looked.acquire(timeout=PATIENCE_SECONDS)
    assert not hangs.is_set()
