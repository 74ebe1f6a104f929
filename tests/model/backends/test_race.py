import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.race import fastest
from msmlp.model.errors import DeviceError
from tests.fakes import FakeBackend


class Clock:
    """Moves on only when a batch runs."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(FakeBackend):
    """A batch of n images takes `base + each * n` seconds, the first one more."""

    def __init__(self, clock: Clock, base: float, each: float) -> None:
        super().__init__(capacity=64, max_batch=64)
        self._clock, self._base, self._each, self._late = clock, base, each, 100.0

    def launch(self, stage: int, slots: Any) -> Any:
        self._clock.now += self._base + self._each * len(slots) + self._late
        self._late = 0.0
        return super().launch(stage, slots)


def race(**times: tuple[float, float]) -> StageBackend:
    clock = Clock()

    def maker(base: float, each: float) -> Callable[[], StageBackend]:
        return lambda: Timed(clock, base, each)

    return fastest({name: maker(*each) for name, each in times.items()}, {}, clock)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"a": (1.0, 0.1), "b": (2.0, 0.2)}, (1.0, 0.1)),
        ({"a": (2.0, 0.2), "b": (1.0, 0.1)}, (1.0, 0.1)),
        # Twice as fast alone, and a tenth slower in full batches.
        ({"a": (1.0, 1.1), "b": (3.2, 1.0)}, (1.0, 1.1)),
    ],
)
def test_the_faster_one_serves_and_the_log_says_so(
    times: dict[str, tuple[float, float]], expected: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "msmlp.engine")
    winner = race(**times)
    assert isinstance(winner, Timed)
    assert (winner._base, winner._each) == expected
    best = next(name for name, each in times.items() if each == expected)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"auto: {best}, ")
    assert " times as fast as " in line
    assert len(winner.admit(np.zeros((64, winner.size, winner.size, 3), dtype=np.uint8))) == 64


def test_what_cannot_run_leaves_the_field_to_the_other(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> StageBackend:
        raise DeviceError("no room")

    fake = FakeBackend(capacity=8, max_batch=8)
    assert fastest({"a": broken, "b": lambda: fake}, {}) is fake
    assert "auto: a cannot run here: no room" in caplog.text
    with pytest.raises(DeviceError, match="no backend can run here: a, b failed"):
        fastest({"a": broken, "b": broken}, {})


def test_so_does_one_that_fails_while_it_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    class Small(FakeBackend):
        def launch(self, stage: int, slots: Any) -> Any:
            if len(slots) > 8:
                raise MemoryError("no room for that many")
            return super().launch(stage, slots)

    fake = FakeBackend(capacity=64, max_batch=64)
    builds = {"a": lambda: Small(capacity=64, max_batch=64), "b": lambda: fake}
    assert fastest(builds, {}) is fake
    assert "auto: a cannot run here: no room for that many" in caplog.text


def test_one_alone_is_not_measured_and_the_log_says_why_it_is_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "msmlp.engine")
    fake = FakeBackend(capacity=8, max_batch=8)
    assert fastest({"torch": lambda: fake}, {"onnx": "no graphs"}) is fake
    assert [record.getMessage() for record in caplog.records] == ["auto: onnx is not tried: no graphs"]
    assert not fake.batches
