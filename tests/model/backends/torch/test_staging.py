"""On a device that reads the ring as late as it may (tests/late_device.py)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.backends.torch.staging import Arrivals
from tests.late_device import LateDriver

CAPACITY, PLACES = 12, 5


class Device:
    """Slots of one-pixel images, each image a number of its own."""

    def __init__(self, capacity: int = CAPACITY, places: int = PLACES) -> None:
        self.driver = LateDriver()
        self.slab = torch.zeros(capacity + 1, 1, 1, 3, dtype=torch.uint8)
        self.arrivals = Arrivals(self.driver, self.slab, places)
        self.images = 0
        self.expected: dict[int, int] = {}

    def add(self, slots: list[int]) -> None:
        numbers = np.arange(self.images, self.images + len(slots)) % 255 + 1
        self.images += len(slots)
        pixels = np.repeat(numbers.astype(np.uint8), 3).reshape(-1, 1, 1, 3)
        self.arrivals.add(pixels, np.array(slots, dtype=np.int64))
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
                device.arrivals.flush()
            else:
                device.add(event)
        device.arrivals.flush()
    assert device.seen() == device.expected


def test_the_host_waits_only_where_the_ring_is_full() -> None:
    device = Device(capacity=8, places=4)
    with device.driver.working():
        for slot in range(4):
            device.add([slot])
            device.arrivals.flush()
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
        device.arrivals.flush()
        assert device.driver.queued == 3
        device.arrivals.flush()
        assert device.driver.queued == 3
        device.add(list(range(20, 40)))
        device.arrivals.flush()
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
            device.arrivals.flush()
        device.driver.fault = lambda asked: None
        device.add([3, 4])
        device.add([5, 6, 7])  # over places whose images are not known to have left
        device.arrivals.flush()
    assert device.seen() == device.expected
