"""Messages as bytes, between a parent and the child it has started itself: nobody else can write to these pipes."""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import Terms


@dataclass(frozen=True)
class Placed:
    """A `Submit` whose `images` pixels lie in shared memory, from place `start` on."""

    request: int
    start: int
    images: int
    terms: Terms
    arrival: float


def pack(value: Any) -> memoryview:
    """Any of our messages, or a container of them."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _TABLE
    pickler.dump(value)
    return stream.getbuffer()


def unpack(frame: bytes) -> Any:
    """What was packed; arrays are read-only."""
    return pickle.loads(frame)


def _array(data: bytes, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(data, kind).reshape(shape)


def _reduce(array: NDArray[Any]) -> tuple[Any, ...]:
    return _array, (array.tobytes(), array.dtype.char, array.shape)


_TABLE: dict[type, Callable[[Any], tuple[Any, ...]]] = {np.ndarray: _reduce}
"""Twice as fast as numpy's own way, for arrays as small as ours."""
