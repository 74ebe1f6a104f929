"""Every message that crosses comes out as it went in."""

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
    Outbound,
    Ran,
    Ready,
    Shadowed,
    Stop,
)
from msmlp.service.engine.process.wire import SharedSubmit, pack, unpack

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
