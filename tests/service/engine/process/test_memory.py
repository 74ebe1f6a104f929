"""The shared ring of images, and the numbers of the load."""

import numpy as np
import pytest

from msmlp.service.engine.messages import Load
from msmlp.service.engine.process.wire import SharedMemory


def images(count: int, first: int) -> np.ndarray:
    """Images whose every byte is first, first + 1, ..."""
    return np.arange(first, first + count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("count", range(1, 6))
def test_images_come_back_from_any_position_and_touch_no_other(start: int, count: int) -> None:
    memory = SharedMemory(ring_images=5, size=4, stages=2)
    memory.write(0, images(5, 100))
    memory.write(start, images(count, 1))
    assert np.array_equal(memory.read(start, count), images(count, 1))
    rest = 5 - count
    if rest:
        places = [(start + count + i) % 5 for i in range(rest)]
        left = memory.read(places[0], rest)
        assert left[:, 0, 0, 0].tolist() == [100 + place for place in places]


def test_a_load_comes_back_with_its_types() -> None:
    memory = SharedMemory(ring_images=1, size=4, stages=2)
    memory.publish(Load((3, 4), (1.5, np.inf), 0.25, 0.5, 0.75, 1.25, submits=6, images=7))
    load = memory.published()
    assert (load.submits, load.images) == (6, 7)
    assert all(type(number) is int for number in (*load.queued, load.submits, load.images))
    assert list(load.queued) == [3, 4]
    assert list(load.oldest) == [1.5, np.inf]
    assert (load.backlog_seconds, load.seconds_per_image, load.work_seconds) == (0.25, 0.5, 0.75)
    assert load.prediction_margin == 1.25
