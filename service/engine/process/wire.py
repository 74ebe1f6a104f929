"""Messages as bytes, between a parent and the child it has started itself: nobody else can write to these pipes."""

import ctypes
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import Load, Terms


@dataclass(frozen=True)
class SharedSubmit:
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


# FROM service/engine/process/wire.py:
# What parent and child both see: a ring of places for pixels on their way, and the numbers of `Load`.

SCALARS = 6  # submits and images the child has taken in, then Load's four numbers


class SharedMemory:
    """`places` images, uint8 [size, size, 3]. It can be sent to a child while that is being started, and only then."""

    def __init__(self, *, places: int, size: int, stages: int) -> None:
        context = get_context("spawn")
        self.places, self._shape, self._stages = places, (places, size, size, 3), stages
        self._raw_pixels = context.RawArray(ctypes.c_uint8, places * size * size * 3)
        self._raw_numbers = context.RawArray(ctypes.c_double, SCALARS + 2 * stages)
        self.attach()

    def attach(self) -> None:
        """Make the arrays: in the process that has made the memory, and in the one it was sent to."""
        self._pixels = np.frombuffer(memoryview(self._raw_pixels), dtype=np.uint8).reshape(self._shape)
        self._numbers = np.frombuffer(memoryview(self._raw_numbers), dtype=np.float64)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_numbers")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.attach()

    def write(self, start: int, pixels: NDArray[np.uint8]) -> None:
        """Images [n, size, size, 3] into n places from `start` on; after the last place comes the first."""
        first = min(len(pixels), self.places - start)
        self._pixels[start : start + first] = pixels[:first]
        self._pixels[: len(pixels) - first] = pixels[first:]

    def read(self, start: int, images: int) -> NDArray[np.uint8]:
        """The images in those places: a view where it can be."""
        end = start + images
        if end <= self.places:
            view: NDArray[np.uint8] = self._pixels[start:end]
            return view
        return np.concatenate([self._pixels[start:], self._pixels[: end - self.places]])

    # The child writes the numbers, number by number, and the parent may read between two of them: good enough for what
    # is looked at ten times a second, and free of locks that a dead child would keep.

    def publish(self, load: Load, submits: int, images: int) -> None:
        """Show what waits in the child, which has taken in so many submits and images so far."""
        scalars = load.backlog_seconds, load.seconds_per_image, load.work_seconds, load.prediction_margin
        self._numbers[:] = (submits, images, *scalars, *load.queued, *load.oldest)

    def published(self) -> tuple[Load, int, int]:
        """The last (load, submits, images)."""
        submits, images, *numbers = self._numbers.tolist()
        scalars, rest = numbers[: SCALARS - 2], numbers[SCALARS - 2 :]
        queued, oldest = rest[: self._stages], rest[self._stages :]
        return Load(tuple(map(int, queued)), tuple(oldest), *scalars), int(submits), int(images)
