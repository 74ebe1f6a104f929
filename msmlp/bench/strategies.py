"""Ways to serve a cascade at saturation: the engine, and what is done elsewhere. Same stages, buckets and thresholds.

Everything runs on the calling thread: torch on two threads of one process means two OpenMP teams that compete, and the
rows would not be comparable. All keep as many batches in flight as the backend takes.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import Slots, StageBackend, StageOutput
from msmlp.model.errors import DeviceError
from msmlp.model.exits import Reason, decide
from msmlp.service.engine.core import EngineCore
from msmlp.service.engine.messages import Answers, Failed, Outbound, Ran, Submit, Terms

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ranges = list[tuple[int, int]]
Walk = Generator[tuple[int, Slots], StageOutput, None]
"""One batch's way through the stages: it asks for a stage over slots and is sent what came out."""

REQUEST = 16
"""Images of a request at saturation."""


class Saturated:
    """EngineCore, scheduler and backend, handed everything at once in requests of `request` images.

    `seconds` [K, buckets] is what warm-up measured.
    """

    def __init__(self, backend: StageBackend, seconds: Floats, request: int = REQUEST) -> None:
        self._landed: list[Outbound] = []
        self.loop = EngineCore(backend, self._landed.append, seconds=seconds)
        self._size, self._requests = request, 0

    def run(self, images: Pixels, thresholds: Floats) -> None:
        """All images, until the last has its answer; DeviceError when a batch failed."""
        self._landed.clear()
        terms = Terms(thresholds, 1, len(thresholds) + 1)
        for start in range(0, len(images), self._size):
            part = images[start : start + self._size]
            self.loop.receive(Submit(self._requests, part, terms, time.monotonic()))
            self._requests += 1
        while not self.loop.idle:
            self.loop.run_once()
        failed = [message.detail for message in self._landed if isinstance(message, Failed)]
        if failed:
            raise DeviceError(failed[0])

    @property
    def exits(self) -> NDArray[np.int64]:
        """Where the images of the last run left, in the order they landed."""
        return np.concatenate([message.exit for message in self._landed if isinstance(message, Answers)])

    @property
    def batches(self) -> list[tuple[int, int]]:
        """(stage 0-based, images) of every batch of the last run."""
        return [(message.stage, message.images) for message in self._landed if isinstance(message, Ran)]


def full(backend: StageBackend, images: Pixels, batch: int) -> list[tuple[int, int]]:
    """Every image through all stages in batches of `batch`, the model without exits → (stage, images) of each."""
    return _drive(backend, (_through(backend, images[a:b]) for a, b in _ranges(len(images), batch)))


def masked(backend: StageBackend, images: Pixels, thresholds: Floats) -> list[tuple[int, int]]:
    """Exits are decided and honoured in the answer, but nobody leaves the batch → (stage, images) of each."""
    parts = _ranges(len(images), backend.buckets[-1])
    return _drive(backend, (_deciding(backend, images[a:b], thresholds, shrink=False) for a, b in parts))


def shrinking(backend: StageBackend, images: Pixels, thresholds: Floats) -> list[tuple[int, int]]:
    """Who leaves makes the batch smaller; survivors of different batches never meet → (stage, images) of each."""
    parts = _ranges(len(images), backend.buckets[-1])
    return _drive(backend, (_deciding(backend, images[a:b], thresholds, shrink=True) for a, b in parts))


def _ranges(images: int, batch: int) -> Ranges:
    return [(start, start + batch) for start in range(0, images, batch)]


def _through(backend: StageBackend, images: Pixels) -> Walk:
    slots = backend.admit(images)
    for stage in range(backend.stages):
        yield stage, slots
    backend.release(slots)


def _deciding(backend: StageBackend, images: Pixels, thresholds: Floats, *, shrink: bool) -> Walk:
    slots = alive = backend.admit(images)
    for stage in range(backend.stages):
        output = yield stage, alive
        limits = np.full(len(alive), thresholds[stage] if stage < len(thresholds) else 0.0)
        reasons = decide(stage + 1, backend.stages, output.score, limits, 1, backend.stages)
        if shrink:
            alive = alive[reasons == Reason.GOES_ON]
            if not len(alive):
                break
    backend.release(slots)


def _drive(backend: StageBackend, walks: Iterable[Walk]) -> list[tuple[int, int]]:
    """Run walks to their ends, `in_flight` of them beside each other → (stage, images) of every batch."""
    ran: list[tuple[int, int]] = []
    flying: deque[tuple[Walk, Any]] = deque()
    waiting = iter(walks)

    def go_on(walk: Walk, output: StageOutput | None) -> None:
        try:
            stage, slots = next(walk) if output is None else walk.send(output)
        except StopIteration:
            return
        ran.append((stage, len(slots)))
        flying.append((walk, backend.launch(stage, slots)))

    while True:
        while len(flying) < backend.in_flight and (new := next(waiting, None)) is not None:
            go_on(new, None)
        if not flying:
            return ran
        walk, handle = flying.popleft()
        go_on(walk, backend.collect(handle))
