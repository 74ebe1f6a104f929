"""What crosses between the engine's process and its parent: pixels in shared memory, all else as pickles over pipes.

Pickles are safe here: only the parent and the child it started can write to these pipes.
"""

import ctypes
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import ExitParameters, Load

SCALARS = 6
"""Load's plain numbers: all of its fields but `queued` and `oldest`."""


@dataclass(frozen=True)
class SharedSubmit:
    """A `Submit` whose `images` images are in shared memory, from position `start` of the ring."""

    request: int
    start: int
    images: int
    parameters: ExitParameters
    arrival: float


def pack(value: Any) -> memoryview:
    """Any of our messages, or a container of them, as bytes."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _TABLE
    pickler.dump(value)
    return stream.getbuffer()


def unpack(frame: bytes) -> Any:
    """What was packed; arrays are read-only."""
    return pickle.loads(frame)


def _array(data: bytes, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(data, dtype).reshape(shape)


def _reduce(array: NDArray[Any]) -> tuple[Any, ...]:
    return _array, (array.tobytes(), array.dtype if array.dtype.names else array.dtype.char, array.shape)


_TABLE: dict[type, Callable[[Any], tuple[Any, ...]]] = {np.ndarray: _reduce}
"""Twice as fast as numpy's own way, for arrays as small as ours."""


class SharedMemory:
    """A ring of `ring_images` images, uint8 [size, size, 3], and the numbers of a Load.

    It can be sent to a child only while that is being started.
    """

    def __init__(self, *, ring_images: int, size: int, stages: int) -> None:
        context = get_context("spawn")
        self.ring_images, self._shape, self._stages = ring_images, (ring_images, size, size, 3), stages
        self._raw_pixels = context.RawArray(ctypes.c_uint8, ring_images * size * size * 3)
        self._raw_numbers = context.RawArray(ctypes.c_double, SCALARS + 2 * stages)
        self._attach()

    def _attach(self) -> None:
        """Make the arrays, in either process."""
        self._pixels = np.frombuffer(memoryview(self._raw_pixels), dtype=np.uint8).reshape(self._shape)
        self._numbers = np.frombuffer(memoryview(self._raw_numbers), dtype=np.float64)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_numbers")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._attach()

    def write(self, start: int, pixels: NDArray[np.uint8]) -> None:
        """Write images [n, size, size, 3] to the ring from position `start` on."""
        first = min(len(pixels), self.ring_images - start)
        self._pixels[start : start + first] = pixels[:first]
        self._pixels[: len(pixels) - first] = pixels[first:]

    def read(self, start: int, images: int) -> NDArray[np.uint8]:
        """Images of the ring: a view, unless they wrap around its end."""
        end = start + images
        if end <= self.ring_images:
            view: NDArray[np.uint8] = self._pixels[start:end]
            return view
        return np.concatenate([self._pixels[start:], self._pixels[: end - self.ring_images]])

    # The child writes the numbers one by one, and the parent may read in between: good enough for what is read ten
    # times a second, and free of locks that a dead child would keep.

    def publish(self, load: Load) -> None:
        """Show what waits in the child."""
        scalars = load.backlog_seconds, load.seconds_per_image, load.work_seconds, load.prediction_margin
        self._numbers[:] = (*scalars, load.submits, load.images, *load.queued, *load.oldest)

    def published(self) -> Load:
        """The load published last."""
        backlog, pace, work, margin, submits, images, *rest = self._numbers.tolist()
        queued, oldest = rest[: self._stages], rest[self._stages :]
        return Load(tuple(map(int, queued)), tuple(oldest), backlog, pace, work, margin, int(submits), int(images))
