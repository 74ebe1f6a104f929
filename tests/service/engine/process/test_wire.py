"""Messages, images and the load come out as they went in."""

from dataclasses import fields, is_dataclass
from typing import Any, get_args

import numpy as np
import pytest

from msmlp.service.engine.messages import (
    HISTORY,
    Answers,
    Cancel,
    Cancelled,
    Died,
    ExitParameters,
    Failed,
    Load,
    Outbound,
    Ran,
    Ready,
    Shadowed,
    Stop,
)
from msmlp.service.engine.process.wire import SharedMemory, SharedSubmit, pack, unpack

ANSWERS = Answers(
    request=np.array([7, 8]),
    index=np.array([0, 3]),
    exit=np.array([1, 2]),
    reason=np.array([1, 2], dtype=np.int8),
    probabilities=np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2],  # not contiguous
    history=np.zeros((2, 3), dtype=HISTORY),
)
MESSAGES: list[Any] = [
    ANSWERS,
    Ready("torch", "cuda:0", 100),
    Failed(np.array([1, 2]), "why"),
    Cancelled("queue", 3),
    Shadowed(np.array([1]), np.array([True])),
    Ran(1, 5, 0.25),
    Died("how", restarting=True),
    SharedSubmit(5, 1, 2, ExitParameters(np.array([0.5, 1.0]), 0, 3, 12.5, stream=True), 3.5),
    Cancel(4),
    Stop(),
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Any) -> None:
    (crossed,) = unpack(bytes(pack([message])))
    assert same(message, crossed)


def test_no_outbound_message_is_forgotten_here() -> None:
    assert set(get_args(Outbound)) <= {type(message) for message in MESSAGES}


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
