"""What tests/contracts cannot see of the staged backend."""

from pathlib import Path

import numpy as np
import pytest
import torch

from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.torch.backend import ARRIVING, StagedBackend
from msmlp.model.backends.torch.devices import EagerDriver, Step
from msmlp.model.errors import DeviceError, OutOfMemoryError
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS
from tests.late_device import LateDriver


class Overlapping(EagerDriver):
    """A CPU that may have several batches in flight, as a GPU does."""

    def __init__(self, in_flight: int) -> None:
        super().__init__()
        self.in_flight = in_flight


def staged(weights: Path, driver: EagerDriver | None = None, capacity: int = 200) -> StagedBackend:
    settings = BackendSettings("cpu", capacity=capacity, max_batch=16)
    return StagedBackend(load_weights(weights), settings, driver or Overlapping(2))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_batches_in_flight_are_counted(tiny_weights: Path, in_flight: int) -> None:
    backend = staged(tiny_weights, Overlapping(in_flight))
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
    backend = staged(tiny_weights, Overlapping(1))
    slots = backend.admit(images(8))
    first = backend.collect(backend.launch(0, slots[:4]))
    before = first.probabilities.copy()
    backend.collect(backend.launch(0, slots[4:]))
    assert np.array_equal(first.probabilities, before)


def test_more_images_than_may_be_on_their_way(tiny_weights: Path) -> None:
    driver, pixels = LateDriver(), images(ARRIVING + 100)
    backend = staged(tiny_weights, driver, capacity=len(pixels))
    with driver.working():
        slots = backend.admit(pixels)
        some = np.concatenate([slots[:8], slots[-8:]])
        output = backend.collect(backend.launch(0, some))
    expected = run_every_exit(staged(tiny_weights), np.concatenate([pixels[:8], pixels[-8:]])).scores[:, 0]
    assert output.score.tolist() == expected.tolist()


@pytest.mark.parametrize(("requests", "size"), [(30, 1), (1, 160), (3, 40)])
def test_no_request_waits_for_the_batch_in_flight(tiny_weights: Path, requests: int, size: int) -> None:
    driver = LateDriver()
    backend = staged(tiny_weights, driver)
    with driver.working():
        slots = backend.admit(images(32))
        first, second = backend.launch(0, slots[:16]), backend.launch(0, slots[16:])
        backend.collect(first)
        waits, done = driver.waits, driver.done
        for _ in range(requests):
            newcomers = backend.admit(images(size))
        third = backend.launch(0, newcomers[:16])
        assert (driver.waits, driver.done) == (waits, done)
        backend.collect(second)
        assert driver.done < driver.queued
        backend.collect(third)


def test_nothing_is_overwritten_that_the_device_may_still_read(tiny_weights: Path) -> None:
    """A device that does all as late as it may says what one does that does all at once."""
    pixels, driver, said = images(400), LateDriver(), []
    backend = staged(tiny_weights, driver, capacity=48)
    with driver.working():
        before = None
        for start in range(0, 400, 16):
            slots = backend.admit(pixels[start : start + 16])
            following = slots, backend.launch(0, slots)
            for taken, handle in [before] if before else []:
                said.append(backend.collect(handle).score)
                backend.release(taken)
            before = following
        assert before
        said.append(backend.collect(before[1]).score)
    expected = run_every_exit(staged(tiny_weights), pixels).scores[:, 0]
    assert np.concatenate(said).tolist() == expected.tolist()


def test_a_slot_given_back_unused_and_taken_again_has_its_new_image(tiny_weights: Path) -> None:
    backend, pixels = staged(tiny_weights), images(32)
    backend.release(backend.admit(pixels[:16]))
    output = backend.collect(backend.launch(0, backend.admit(pixels[16:])))
    expected = run_every_exit(staged(tiny_weights), pixels[16:]).scores[:, 0]
    assert output.score.tolist() == expected.tolist()


@pytest.mark.parametrize("bucket", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64])
def test_on_a_cpu_an_image_says_the_same_bits_in_every_place(bucket: int) -> None:
    """In real sizes: libraries may compute the edge of a large matrix otherwise than its middle."""
    backend = StagedBackend(load_weights(DEFAULT_WEIGHTS), BackendSettings("cpu", capacity=bucket))
    pixels, said = images(65), set()
    for place in {0, 1, bucket // 3, bucket // 2, bucket - 2, bucket - 1} & set(range(bucket)):
        order = np.random.default_rng(place).permutation(64)[:bucket]
        order[place] = 64
        slots = backend.admit(pixels[order])
        outputs = [backend.collect(backend.launch(stage, slots)) for stage in range(backend.stages)]
        said.add(b"".join(output.probabilities[place].tobytes() for output in outputs))
        backend.release(slots)
    assert len(said) == 1


def test_the_head_is_fp32_and_the_rest_is_not(tiny_weights: Path) -> None:
    """In bf16 alone a score would be one of few: those near 1 are 1/256 apart."""
    settings = BackendSettings("cpu", "bfloat16", capacity=64, max_batch=16)
    backend = StagedBackend(load_weights(tiny_weights), settings)
    scores = run_every_exit(backend, images(64)).scores
    coarse = torch.from_numpy(scores).to(torch.bfloat16).float().numpy()
    assert (scores != coarse).mean() > 0.9
    exact = run_every_exit(staged(tiny_weights), images(64)).scores
    assert 0 < np.abs(scores - exact).max() < 0.1
