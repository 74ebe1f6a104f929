"""Ways to serve a cascade at saturation: the engine, and what is done elsewhere. Same stages, same thresholds.

Everything runs on the calling thread: torch on two threads of one process means two OpenMP teams that compete, and the
rows would not be comparable.
"""

import time

import numpy as np
from numpy.typing import NDArray

from model.backends.protocol import Slots, StageBackend, StageOutput, buckets_up_to
from model.backends.slots import SlotPool
from model.errors import DeviceError
from model.exits import Reason, decide
from model.offline import run_every_exit
from service.engine.loop import Loop
from service.engine.messages import Answers, Failed, Outbound, Submit, Terms

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
REQUEST = 16


class Saturated:
    """Scheduler and backend, handed everything at once, in requests of REQUEST images."""

    def __init__(self, backend: StageBackend) -> None:
        self._landed: list[Outbound] = []
        self._loop = Loop(backend, self._landed.append)
        self._request = 0

    def run(self, images: Pixels, thresholds: Floats) -> NDArray[np.int64]:
        """All images → the exits they left at, in the order they landed."""
        self._landed.clear()
        terms = Terms(thresholds, 1, len(thresholds) + 1)
        for start in range(0, len(images), REQUEST):
            part = images[start : start + REQUEST]
            self._loop.receive(Submit(self._request, part, terms, time.monotonic()))
            self._request += 1
        while not self._loop.idle:
            self._loop.run_once()
        failed = [message.detail for message in self._landed if isinstance(message, Failed)]
        if failed:
            raise DeviceError(failed[0])
        return np.concatenate([message.exit for message in self._landed if isinstance(message, Answers)])


def full(backend: StageBackend, images: Pixels) -> None:
    """Every image through all stages in the largest batches: the model without exits."""
    run_every_exit(backend, images)


def masked(backend: StageBackend, images: Pixels, thresholds: Floats) -> None:
    """Exits are decided and honoured in the answer, but nobody leaves the batch."""
    _batches(backend, images, thresholds, shrink=False)


def shrinking(backend: StageBackend, images: Pixels, thresholds: Floats) -> None:
    """Who leaves makes the batch smaller; survivors of different batches never meet."""
    _batches(backend, images, thresholds, shrink=True)


def _batches(backend: StageBackend, images: Pixels, thresholds: Floats, *, shrink: bool) -> None:
    largest = backend.buckets[-1]
    for start in range(0, len(images), largest):
        slots = alive = backend.admit(images[start : start + largest])
        for stage in range(backend.stages):
            output = backend.collect(backend.launch(stage, alive))
            limits = np.full(len(alive), thresholds[stage] if stage < len(thresholds) else 0.0)
            reasons = decide(stage + 1, backend.stages, output.score, limits, 1, backend.stages)
            if shrink:
                alive = alive[reasons == Reason.GOES_ON]
                if not len(alive):
                    break
        backend.release(slots)


class ReplayBackend:
    """No device: every image answers with the scores recorded for it, so that what is timed is the host's own work."""

    name, device, dtype, classes, size, in_flight = "replay", "none", "float32", 2, 1, 1

    def __init__(self, scores: NDArray[np.float32], max_batch: int) -> None:
        self._recorded = scores
        self.stages, self.capacity = scores.shape[1], len(scores)
        self.buckets = buckets_up_to(min(max_batch, self.capacity))
        self._pool = SlotPool(self.capacity)
        self._image = np.zeros(self.capacity, dtype=np.int64)
        self._next = 0

    def admit(self, pixels: Pixels) -> Slots:
        """The next images of the recording."""
        slots = self._pool.take(len(pixels))
        self._image[slots] = (self._next + np.arange(len(slots))) % len(self._recorded)
        self._next += len(slots)
        return slots

    def launch(self, stage: int, slots: Slots) -> tuple[int, Slots]:
        """Nothing runs."""
        return stage, slots

    def collect(self, handle: tuple[int, Slots]) -> StageOutput:
        """What was recorded."""
        stage, slots = handle
        score = self._recorded[self._image[slots], stage]
        return StageOutput(score, np.stack([score, 1 - score], axis=1))

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)
