"""`msmlp serve` around a backend that computes nothing: what remains is the work of the front end and the engine.

    python -c "from msmlp.bench.null_server import main; main()" [--port=0] [--capacity=1024] ...

Not with -m: the processes that it starts could not import what is in `__main__`. For benchmarks only. Images are
answered with the scores that the calibration recorded, one after the other, so that exits fire as they do on the
validation images.
"""

import sys
from functools import partial

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from msmlp.model.backends.protocol import Slots, StageOutput, buckets_up_to
from msmlp.model.backends.select import Selection
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.slots import SlotPool
from msmlp.model.weights import Calibration, Weights
from msmlp.model.weights.calibration import TABLE
from msmlp.service.http.server import serve
from msmlp.service.service import build_service
from msmlp.service.settings import load_settings

CAPACITY = 1024
"""Images in flight by default."""


class NullBackend:
    """No device. `scores` float32 [N, K]: the n-th image that arrives has row n mod N, for a class of its own."""

    name, device, dtype, in_flight = "null", "none", "float32", 1

    def __init__(
        self,
        scores: NDArray[np.float32],
        *,
        classes: int,
        image_shape: tuple[int, ...],
        capacity: int,
        max_batch: int = 64,
    ) -> None:
        images, self.stages = scores.shape
        self.classes, self.image_shape, self.capacity = classes, image_shape, capacity
        self.buckets = buckets_up_to(min(max_batch, capacity))
        self._score = scores.astype(np.float32)
        rest = (1 - self._score) / max(1, classes - 1)
        self._probabilities = np.repeat(rest[:, :, None], classes, axis=2)
        rows = np.arange(images)
        self._probabilities[rows, :, rows % classes] = self._score
        self._pool, self._row, self._next = SlotPool(capacity), np.zeros(capacity, dtype=np.int64), 0

    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        slots = self._pool.take(len(pixels))
        self._row[slots] = (self._next + np.arange(len(slots))) % len(self._score)
        self._next += len(slots)
        return slots

    def launch(self, stage: int, slots: Slots) -> tuple[int, Slots]:
        return stage, slots

    def collect(self, handle: tuple[int, Slots]) -> StageOutput:
        stage, slots = handle
        rows = self._row[slots]
        return StageOutput(self._score[rows, stage], self._probabilities[rows, stage])

    def release(self, slots: Slots) -> None:
        self._pool.give(slots)


def select_null(weights: Weights, calibration: Calibration, settings: BackendSettings, backend: str) -> Selection:
    manifest = weights.manifest
    build = partial(
        NullBackend,
        load_file(weights.folder / TABLE)["scores"],
        classes=len(manifest.classes),
        image_shape=manifest.cascade.shape.image,
        capacity=(settings.capacity or CAPACITY) + settings.reserve,
        max_batch=settings.largest_batch,
    )
    return Selection("null", "cpu", "it computes nothing", build)


build_null = partial(build_service, select=select_null)
"""Made of names that a process started by the server can import: it may be given this."""


def main() -> None:
    """Serve with the options `--name=value` of `msmlp serve`."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    serve(load_settings(**{name.replace("-", "_"): value for name, value in given.items()}), build_null)
