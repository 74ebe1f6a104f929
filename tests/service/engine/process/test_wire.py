"""Messages, images and the load come out as they went in."""

import os
import socket
import tempfile
from collections.abc import Iterator
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
    Invalid,
    Outbound,
    Ran,
    Ready,
    Shadowed,
    Stop,
)
from msmlp.service.engine.process.wire import Channel, Hello, SharedSubmit, Welcome, pack, unpack

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
    Invalid(2),
    Cancelled("queue", 3),
    Shadowed(np.array([1]), np.array([True])),
    Ran(1, 5, 0.25),
    Died("how", restarting=True),
    SharedSubmit(5, 1, 2, ExitParameters(np.array([0.5, 1.0]), 0, 3, 12.5, stream=True), 3.5),
    Cancel(4),
    Stop(),
    Hello(5),
    Welcome(3),
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple) and one:
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Any) -> None:
    (crossed,) = unpack(bytes(pack([message])))
    assert same(message, crossed)


def test_no_outbound_message_is_forgotten_here() -> None:
    assert set(get_args(Outbound)) <= {type(message) for message in MESSAGES}


# --- the channel -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_messages_come_in_order_however_they_were_sent(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    assert there.receive() == []
    here.send([Cancel(1), Cancel(2)])
    here.send([])
    here.send([Cancel(3)])
    assert there.receive() == [Cancel(1), Cancel(2), Cancel(3)]
    there.send([Cancel(4)])
    assert here.receive() == [Cancel(4)]


def test_sending_never_waits_and_what_did_not_fit_follows(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    large = ["x" * 1_000_000]
    for _ in range(3):
        here.send(large)
    assert 0 < here.unsent < 3_100_000
    came: list[Any] = []
    while here.unsent or len(came) < 3:
        came += there.receive() or []
        here.flush()
    assert came == 3 * large


def test_a_file_comes_with_the_first_message_and_only_there(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    with tempfile.TemporaryFile() as file:
        file.write(b"seen by both")
        file.flush()
        here.send([Hello(1)], file.fileno())
        here.send([Cancel(1)])
    assert (there.receive() or []) + (there.receive() or []) == [Hello(1), Cancel(1)]
    with os.fdopen(there.take_file(), "rb") as came:
        assert came.seek(0) == 0
        assert came.read() == b"seen by both"
    with pytest.raises(ValueError, match="no file"):
        here.take_file()


def test_the_end_of_the_other_side_is_found_after_its_last_words(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.send([Cancel(1)])
    here.close()
    assert there.receive() == [Cancel(1)]
    assert there.receive() is None
    there.send([Cancel(2)])  # which nobody hears
    assert there.unsent == 0
