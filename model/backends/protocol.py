"""The protocol of a backend: slots on a device, and stages that run over them.

A ticket's image and its features at every stage boundary stay in its slot from `admit` to `release`; features never
visit the host. One thread calls a backend.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DeviceError, MsmlpError, OutOfMemoryError

log = logging.getLogger("msmlp.engine")

Slots = NDArray[np.int64]

ROUNDS = (np.inf, 1.0, 0.05, 0.05, 0.05)
"""In each round, warm-up repeats the batches that take at most this many seconds: a single outlier would mislead the
scheduler."""

LONG = 4
"""How many times as long as `most` batches may take that are timed at all: first runs take longer than others."""

_OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "unable to allocate",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "could not create a primitive",  # oneDNN says no more than this
)


@dataclass(frozen=True)
class StageOutput:
    """One stage's answers for a batch, in the order of its slots: score [n] and probabilities [n, classes], float32."""

    score: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class StageBackend(Protocol):
    """`stages` stages over `capacity` slots; images are uint8 [*image_shape] (model/shape.py).

    A batch runs in the smallest of `buckets` that holds it. Within one bucket, an image's outputs do not depend on the
    other images of the batch.
    """

    name: str
    device: str
    dtype: str
    stages: int
    classes: int
    image_shape: tuple[int, ...]
    capacity: int
    buckets: tuple[int, ...]
    in_flight: int
    """How many batches may be launched before one is collected, no slot in two of them; 1 where `launch` waits."""

    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, *image_shape] → their slots [n].

        DeviceError if fewer than n slots are free or the pixels have another shape or type; no slot is taken then.
        """

    def launch(self, stage: int, slots: Slots) -> Any:
        """Start stage `stage` (0-based) over at most `buckets[-1]` slots → a handle for `collect`."""

    def collect(self, handle: Any) -> StageOutput:
        """Wait for a launched batch."""

    def release(self, slots: Slots) -> None:
        """Free slots; DeviceError if one is free already."""


def check_pixels(pixels: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
        expected = ", ".join(map(str, ("n", *shape)))
        raise DeviceError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected uint8 [{expected}]")


def black(backend: StageBackend, images: int) -> NDArray[np.uint8]:
    """`images` black images."""
    return np.zeros((images, *backend.image_shape), dtype=np.uint8)


def bucket_of(buckets: tuple[int, ...], images: int) -> int:
    return buckets[bisect_left(buckets, images)]


def buckets_up_to(largest: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then steps of at most half (12, 16, 24, 32, ...) up to `largest`: padding stays under a third."""
    sizes, size = {largest}, 1
    while size < largest:
        sizes.add(size)
        if size >= 8 and size * 3 // 2 < largest:
            sizes.add(size * 3 // 2)
        size *= 2
    return tuple(sorted(sizes))


Call = TypeVar("Call", bound=Callable[..., Any])


class device_errors:  # noqa: N801 - used as a function, and faster than one around every batch
    """Turn what a library raises into OutOfMemoryError or DeviceError. Also a decorator."""

    def __call__(self, call: Call) -> Call:
        @wraps(call)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                self.__exit__(type(error), error, None)
                raise

        return cast(Call, guarded)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, MsmlpError):
            return
        # ONNX Runtime's errors are not RuntimeErrors.
        if not isinstance(error, MemoryError | RuntimeError) and "onnxruntime" not in type(error).__module__:
            return
        raised = OutOfMemoryError if _is_out_of_memory(error) else DeviceError
        raise raised(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


@contextmanager
def of_stage(stage: int) -> Iterator[None]:
    """Name a stage (0-based) in a DeviceError."""
    try:
        yield
    except DeviceError as error:
        raise type(error)(f"stage {stage + 1}: {error}") from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Looks at earlier errors too: cleaning up after running out of memory may fail in its own way."""
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            return True
        error = error.__context__
    return False


def warm_up(backend: StageBackend, most: float = np.inf) -> NDArray[np.float64]:
    """Run every stage in every bucket, so that no request pays for a first run → seconds per batch, [K, buckets].

    Seconds never fall from a bucket to a larger one. Buckets that do not fit on the device are removed from
    `backend.buckets`; DeviceError if not even the smallest fits. A bucket above the smallest is removed too, with
    all larger ones, if a stage's first two runs in it both take over LONG x `most` seconds: nobody will use it, and
    timing it would take minutes for a large network.
    """
    slots = backend.admit(black(backend, backend.buckets[-1]))
    seconds = np.full((len(backend.buckets), backend.stages), np.inf)
    try:
        # Round after round over all batches, so that a disturbance hits each of them once at most; the fastest run
        # counts. The first round does not: it captures graphs and allocates memory.
        for counts, limit in ((False, np.inf), *((True, limit) for limit in ROUNDS)):
            for b, stage in np.argwhere(_at_most_those_of_larger(seconds) <= limit).tolist():
                try:
                    again = _timed(backend, stage, slots[: backend.buckets[b]])
                except OutOfMemoryError as error:
                    _step_down(backend, b, error)
                    seconds = seconds[:b]
                    break
                if counts:
                    seconds[b, stage] = min(seconds[b, stage], again)
                elif b and again > LONG * most and _timed(backend, stage, slots[: backend.buckets[b]]) > LONG * most:
                    backend.buckets = backend.buckets[:b]
                    seconds = seconds[:b]
                    break
    finally:
        backend.release(slots)
    return _at_most_those_of_larger(seconds).T


def _step_down(backend: StageBackend, kept: int, error: OutOfMemoryError) -> None:
    bucket = backend.buckets[kept]
    if not kept:
        raise DeviceError(f"a batch of {bucket} does not fit on {backend.device}: {error}") from error
    backend.buckets = backend.buckets[:kept]
    log.warning("a batch of %d does not fit (%s): the largest is %d now", bucket, error, backend.buckets[-1])


def _at_most_those_of_larger(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """A batch takes no longer than a larger one, as it could be padded to it; a longer time was disturbed."""
    return np.minimum.accumulate(seconds[::-1])[::-1]


def _timed(backend: StageBackend, stage: int, slots: Slots) -> float:
    start = time.perf_counter()
    backend.collect(backend.launch(stage, slots))
    return time.perf_counter() - start
