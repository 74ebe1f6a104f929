"""What each stage costs in time, on the backend and the device that calibrate."""

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend

RUNS = 9


def measure_stage_ms(backend: StageBackend, pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    """Each stage's own milliseconds an image: the median of RUNS runs of the largest bucket.

    `pixels` [N, size, size, 3] are repeated to fill the bucket. Every run goes through all stages, so that a slow
    moment of the machine does not fall on one stage alone.
    """
    batch = backend.buckets[-1]
    slots = backend.admit(pixels[np.arange(batch) % len(pixels)])
    runs = [[_launch_ms(backend, stage, slots) for stage in range(backend.stages)] for _ in range(RUNS + 1)]
    backend.release(slots)
    # The first run warms up.
    return tuple(statistics.median(stage) / batch for stage in zip(*runs[1:], strict=True))


def _launch_ms(backend: StageBackend, stage: int, slots: NDArray[np.int64]) -> float:
    start = time.perf_counter()
    backend.collect(backend.launch(stage, slots))
    return 1000 * (time.perf_counter() - start)
