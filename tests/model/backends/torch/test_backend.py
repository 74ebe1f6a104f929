"""What tests/contracts cannot see of the staged backend."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.torch.backend import STAGED, StagedBackend, StagingBuffer
from msmlp.model.backends.torch.devices import Driver, Step
from msmlp.model.errors import DeviceError, OutOfMemoryError
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS
from tests.late_device import LateDriver


class Overlapping(Driver):
    """A CPU that may have several batches in flight, as a GPU does."""

    def __init__(self, in_flight: int) -> None:
        super().__init__()
        self.in_flight = in_flight


def staged(weights: Path, driver: Driver | None = None, capacity: int = 200) -> StagedBackend:
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
    class Failing(Driver):
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
    driver, pixels = LateDriver(), images(STAGED + 100)
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


CAPACITY, PLACES = 12, 5


class Device:
    """Reads the ring as late as it may. Slots of one-pixel images, each image a number of its own."""

    def __init__(self, capacity: int = CAPACITY, places: int = PLACES) -> None:
        self.driver = LateDriver()
        self.slab = torch.zeros(capacity + 1, 1, 1, 3, dtype=torch.uint8)
        self.staging = StagingBuffer(self.driver, self.slab, places)
        self.images = 0
        self.expected: dict[int, int] = {}

    def add(self, slots: list[int]) -> None:
        numbers = np.arange(self.images, self.images + len(slots)) % 255 + 1
        self.images += len(slots)
        pixels = np.repeat(numbers.astype(np.uint8), 3).reshape(-1, 1, 1, 3)
        self.staging.add(pixels, np.array(slots, dtype=np.int64))
        pixels[:] = 0  # the caller's memory is the caller's again
        self.expected |= dict(zip(slots, numbers.tolist(), strict=True))

    def seen(self) -> dict[int, int]:
        return {slot: int(self.slab[slot, 0, 0, 0]) for slot in self.expected}


requests = st.lists(st.integers(0, CAPACITY - 1), min_size=1, max_size=CAPACITY, unique=True)


@given(st.lists(st.one_of(requests, st.none()), max_size=30))
def test_every_slot_has_the_image_that_came_last(events: list[list[int] | None]) -> None:
    """However requests (slots) and flushes (None) follow one another, and however late the device reads."""
    device = Device()
    with device.driver.working():
        for event in events:
            if event is None:
                device.staging.flush()
            else:
                device.add(event)
        device.staging.flush()
    assert device.seen() == device.expected


def test_the_host_waits_only_where_the_ring_is_full() -> None:
    device = Device(capacity=8, places=4)
    with device.driver.working():
        for slot in range(4):
            device.add([slot])
            device.staging.flush()
        assert device.driver.waits == 0
        device.add([4])
        assert device.driver.waits == 1
        device.add([5])
        assert device.driver.waits == 2


def test_a_flush_is_a_few_copies_however_many_requests() -> None:
    device = Device(capacity=64, places=32)
    with device.driver.working():
        for slot in range(20):
            device.add([slot])
        assert device.driver.queued == 0
        device.staging.flush()
        assert device.driver.queued == 3
        device.staging.flush()
        assert device.driver.queued == 3
        device.add(list(range(20, 40)))
        device.staging.flush()
        assert device.driver.queued == 9, "the ring's end and its beginning"


@pytest.mark.parametrize("what", ["copy_", "index_copy_", "record"])
def test_what_could_not_be_sent_goes_with_the_next_batch(what: str) -> None:
    device = Device()

    def fail(asked: str) -> None:
        if asked == what:
            raise RuntimeError("no")

    with device.driver.working():
        device.add([0, 1, 2])
        device.driver.fault = fail
        with pytest.raises(RuntimeError):
            device.staging.flush()
        device.driver.fault = lambda asked: None
        device.add([3, 4])
        device.add([5, 6, 7])  # over places whose images are not known to have left
        device.staging.flush()
    assert device.seen() == device.expected
