"""Every way to serve, on a backend without a device: who runs through what, and in which batches."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.bench.null_server import NullBackend
from msmlp.bench.saturation import Saturated, baseline
from msmlp.bench.stages import reach_of
from msmlp.model.backends.protocol import Slots, StageOutput, warm_up
from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import exit_of
from tests.fakes import FakeBackend, pictures

SCORES = np.random.default_rng(0).random((200, 3)).astype(np.float32)
THRESHOLDS = np.array([0.6, 0.4])
EXITS = exit_of(SCORES, THRESHOLDS)
NOTHING = np.zeros((200, 1, 1, 3), dtype=np.uint8)


def null(in_flight: int = 1) -> NullBackend:
    backend = NullBackend(SCORES, classes=2, image_shape=(1, 1, 3), capacity=len(SCORES), max_batch=16)
    backend.in_flight = in_flight
    return backend


def entered(batches: list[tuple[int, int]]) -> list[int]:
    return [sum(images for stage, images in batches if stage == k) for k in range(3)]


REACHED = reach_of(EXITS, 3) * len(EXITS)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_without_a_device_the_engine_makes_the_very_decisions_that_calibration_makes(in_flight: int) -> None:
    engine = Saturated(null(in_flight), warm_up(null()))
    batches = engine.run(NOTHING, THRESHOLDS)
    assert entered(batches) == pytest.approx(REACHED)
    batches = engine.run(NOTHING, np.ones(2))
    assert entered(batches) == [200] * 3


@pytest.mark.parametrize("in_flight", [1, 2])
def test_full_and_masked_run_every_image_through_every_stage(in_flight: int) -> None:
    backend = null(in_flight)
    batches = baseline(backend, NOTHING, 12)
    assert entered(batches) == [200] * 3
    assert {images for _, images in batches} == {12, 200 % 12}
    assert entered(baseline(backend, NOTHING, 16, THRESHOLDS)) == [200] * 3
    backend.admit(NOTHING)  # all slots are free again


@pytest.mark.parametrize("in_flight", [1, 2])
def test_shrinking_batches_lose_images_that_leave_and_never_merge(in_flight: int) -> None:
    backend = null(in_flight)
    batches = baseline(backend, NOTHING, 16, THRESHOLDS, shrink=True)
    assert entered(batches) == pytest.approx(REACHED)
    parts = [EXITS[start : start + 16] for start in range(0, 200, 16)]
    for stage in range(3):
        alive = sorted(int((part > stage).sum()) for part in parts)
        assert sorted(images for k, images in batches if k == stage) == [n for n in alive if n]
    backend.admit(NOTHING)


def test_no_more_batches_are_in_flight_than_the_backend_takes() -> None:
    backend = Counting()
    baseline(backend, pictures(40, 0.5), 8)
    assert backend.most == 2


class Counting(FakeBackend):
    """Two batches in flight."""

    def __init__(self) -> None:
        super().__init__(in_flight=2)
        self.flying = self.most = 0

    def launch(self, stage: int, slots: Slots) -> Any:
        self.flying += 1
        self.most = max(self.most, self.flying)
        return super().launch(stage, slots)

    def collect(self, handle: Any) -> StageOutput:
        self.flying -= 1
        return super().collect(handle)


def test_a_device_that_fails_is_said_to() -> None:
    backend = FakeBackend()

    def broken(stage: int, pixels: NDArray[np.uint8]) -> None:
        raise RuntimeError("broken")

    engine = Saturated(backend, np.ones((3, len(backend.buckets))))
    backend.fail = broken
    with pytest.raises(DeviceError, match="the device failed"):
        engine.run(pictures(4, 0.5), THRESHOLDS)
