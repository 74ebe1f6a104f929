"""What tests/contracts cannot see of the staged backend."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.backends.drivers import EagerDriver, Event, Step
from model.backends.staged import ADMITTED, StagedBackend
from model.errors import DeviceError, OutOfMemoryError
from model.offline import run_every_exit
from model.weights import load_weights


class _Mark:
    """An event that must be waited for before it is recorded again: until then the device may be at the buffers."""

    def __init__(self) -> None:
        self.pending = False

    def record(self) -> None:
        assert not self.pending, "the buffers were filled again before the device was done with them"
        self.pending = True

    def synchronize(self) -> None:
        self.pending = False


class StrictDriver(EagerDriver):
    """A CPU that minds whether the host waits as it would have to."""

    def event(self) -> Event:
        return _Mark()


def staged(weights: Path, driver: EagerDriver | None = None, **options: int) -> StagedBackend:
    loaded = load_weights(weights)
    return StagedBackend(
        loaded,
        driver or EagerDriver(),
        temperatures=(1.0,) * len(loaded.manifest.cascade.stages),
        exit_policy="max-probability",
        dtype=torch.float32,
        **{"capacity": 200, "max_batch": 16, **options},
    )


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_batches_in_flight_are_counted(tiny_weights: Path, in_flight: int) -> None:
    backend = staged(tiny_weights, in_flight=in_flight)
    slots = backend.admit(images(8)).reshape(4, 2)
    handles = [backend.launch(0, slots[i]) for i in range(in_flight)]
    with pytest.raises(DeviceError, match=f"{in_flight} batches are in flight already"):
        backend.launch(0, slots[3])
    backend.collect(handles[0])
    backend.collect(backend.launch(0, slots[3]))


def test_a_batch_that_could_not_start_is_not_in_flight(tiny_weights: Path) -> None:
    class Failing(EagerDriver):
        def replaying(self, step: Step) -> Step:
            def fail(stage: int, bucket: int) -> None:
                raise torch.OutOfMemoryError("CUDA out of memory")

            return fail

    backend = staged(tiny_weights, Failing())
    slots = backend.admit(images(2))
    for _ in range(5):
        with pytest.raises(OutOfMemoryError):
            backend.launch(0, slots)


def test_answers_stay_what_they_were_when_their_buffer_serves_another_batch(tiny_weights: Path) -> None:
    backend = staged(tiny_weights, in_flight=1)
    slots = backend.admit(images(8))
    first = backend.collect(backend.launch(0, slots[:4]))
    before = first.probabilities.copy()
    backend.collect(backend.launch(0, slots[4:]))
    assert np.array_equal(first.probabilities, before)


def test_more_images_than_one_staging_buffer_carries(tiny_weights: Path) -> None:
    backend, pixels = staged(tiny_weights), images(2 * ADMITTED + 5)
    slots = backend.admit(pixels)
    together = [
        backend.collect(backend.launch(0, slots[start : start + 16])).score for start in range(0, len(slots), 16)
    ]
    backend.release(slots)
    apart = run_every_exit(staged(tiny_weights), pixels).scores[:, 0]
    assert np.concatenate(together).tolist() == apart.tolist()


def test_nothing_is_overwritten_that_the_device_may_still_read(tiny_weights: Path) -> None:
    backend = staged(tiny_weights, StrictDriver())
    slots = backend.admit(images(200))
    launched = backend.launch(0, slots[:16])
    for start in range(16, 160, 16):
        following = backend.launch(0, slots[start : start + 16])
        backend.collect(launched)
        launched = following
    backend.collect(launched)
    backend.release(slots)
    for _ in range(4):
        backend.release(backend.admit(images(3)))


def test_the_head_is_fp32_and_the_rest_is_not(tiny_weights: Path) -> None:
    """In bf16 alone a score would be one of few: those near 1 are 1/256 apart."""
    loaded = load_weights(tiny_weights)
    backend = StagedBackend(
        loaded,
        EagerDriver(),
        temperatures=(1.0, 1.0, 1.0),
        exit_policy="max-probability",
        dtype=torch.bfloat16,
        capacity=64,
        max_batch=16,
    )
    scores = run_every_exit(backend, images(64)).scores
    coarse = torch.from_numpy(scores).to(torch.bfloat16).float().numpy()
    assert (scores != coarse).mean() > 0.9
    exact = run_every_exit(staged(tiny_weights), images(64)).scores
    assert 0 < np.abs(scores - exact).max() < 0.1
