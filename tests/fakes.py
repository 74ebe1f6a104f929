"""A backend that computes nothing: a test writes every score into the picture, holds the device, or breaks it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import Slots, StageBackend, StageOutput, bucket_of, buckets_up_to, check_pixels
from msmlp.model.backends.slots import SlotPool

Pixels = NDArray[np.uint8]

PATIENCE_SECONDS = 150
"""How long a test waits for what must happen; only a broken engine ever needs it."""


def picture(*scores: float, label: int | tuple[int, ...] = 0, size: int = 8) -> Pixels:
    """An image for `FakeBackend`: stage k (0-based) will answer `label` with `scores[k]`, to the nearest 1/255.

    `label` is one for all stages, or one a stage.
    """
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[0, : len(scores), 0] = np.round(np.array(scores) * 255)
    if isinstance(label, int):
        pixels[..., 1] = label
    else:
        pixels[1, : len(label), 1] = label
    return pixels


def pictures(count: int, *scores: float, label: int | tuple[int, ...] = 0, size: int = 8) -> Pixels:
    """`count` equal pictures, [count, size, size, 3]."""
    return np.stack([picture(*scores, label=label, size=size)] * count)


class Clock:
    """`time` for a module under test, which can be set ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Gate:
    """Where a batch waits while the device is held."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Event()

    def pass_through(self) -> None:
        """Called on the engine's thread, before every batch."""
        self._reached.set()
        assert self._open.wait(PATIENCE_SECONDS), "the gate was not opened"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold every batch that comes, and let all go at the end."""
        self._reached.clear()
        self._open.clear()
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Let all go before the end."""
        self._open.set()

    def wait_until_reached(self) -> None:
        """Until a batch stands at the closed gate."""
        assert self._reached.wait(PATIENCE_SECONDS), "no batch came"


@dataclass(frozen=True)
class _Launched:
    stage: int
    slots: Slots


class FakeBackend:
    """`model/backends/protocol.py` without a device; `picture` says what an image's stages answer.

    By default it has only its largest bucket: the time of a batch that computes nothing is chance, and the engine
    would size its batches by it. `batches` lists what ran, as (stage 0-based, images); `fail` may raise for a batch,
    from (stage, its images).
    """

    name = "fake"
    device, dtype = "none", "none"

    def __init__(
        self,
        *,
        stages: int = 3,
        classes: int = 4,
        size: int = 8,
        capacity: int = 256,
        max_batch: int = 64,
        in_flight: int = 1,
        every_bucket: bool = False,
    ) -> None:
        self.stages, self.classes, self.in_flight = stages, classes, in_flight
        self.image_shape = (size, size, 3)
        self.capacity, largest = capacity, min(max_batch, capacity)
        self.buckets = buckets_up_to(largest) if every_bucket else (largest,)
        self.gate = Gate()
        self.batches: list[tuple[int, int]] = []
        self.fail: Callable[[int, Pixels], None] = lambda stage, pixels: None
        self._pool = SlotPool(capacity)
        self._taken = 0
        self._pixels = np.zeros((capacity, size, size, 3), dtype=np.uint8)
        self._next_stage = np.zeros(capacity, dtype=np.int64)

    @property
    def taken(self) -> int:
        """How many slots are in use."""
        return self._taken

    def admit(self, pixels: Pixels) -> Slots:
        check_pixels(pixels, self.image_shape)
        slots = self._pool.take(len(pixels))
        self._taken += len(slots)
        self._pixels[slots] = pixels
        self._next_stage[slots] = 0
        return slots

    def launch(self, stage: int, slots: Slots) -> _Launched:
        bucket_of(self.buckets, len(slots))
        # Without the stage before it, a real stage would read another ticket's features.
        assert (self._next_stage[slots] >= stage).all(), f"stage {stage} before the one it reuses"
        self._next_stage[slots] = stage + 1
        return _Launched(stage, slots)

    def collect(self, handle: _Launched) -> StageOutput:
        self.gate.pass_through()
        pixels = self._pixels[handle.slots]
        self.fail(handle.stage, pixels)
        self.batches.append((handle.stage, len(handle.slots)))
        score = (pixels[:, 0, handle.stage, 0] / 255).astype(np.float32)
        probabilities = np.repeat((1 - score)[:, None] / max(1, self.classes - 1), self.classes, axis=1)
        probabilities[np.arange(len(score)), pixels[:, 1, handle.stage, 1]] = score
        return StageOutput(score, probabilities)

    def release(self, slots: Slots) -> None:
        self._pool.give(slots)
        self._taken -= len(slots)


class Gated:
    """A real backend behind a gate."""

    def __init__(self, backend: StageBackend) -> None:
        self._backend, self.gate = backend, Gate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def launch(self, stage: int, slots: Slots) -> Any:
        self.gate.pass_through()
        return self._backend.launch(stage, slots)
