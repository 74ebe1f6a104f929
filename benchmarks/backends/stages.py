"""Milliseconds of every stage in every bucket, all backends by turns in one process."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNCOUNTED = 2
"""First rounds that do not count: they take memory and wake threads."""


def stage_times(
    backends: Mapping[str, StageBackend], images: NDArray[np.uint8], rounds: int, buckets: tuple[int, ...] = BUCKETS
) -> list[dict[str, Any]]:
    """A row a bucket: `bucket`, and for each backend the median milliseconds of every stage, [K].

    With gather, scatter and answers on the host; `images` [N, H, W, 3] hold the largest bucket.
    """
    rows = []
    for bucket in buckets:
        samples: dict[str, list[list[float]]] = {name: [] for name in backends}
        for number in range(rounds + UNCOUNTED):
            for name, backend in backends.items():
                seconds = _through(backend, images[:bucket])
                if number >= UNCOUNTED:
                    samples[name].append(seconds)
        medians = {name: np.round(1e3 * np.median(each, axis=0), 3).tolist() for name, each in samples.items()}
        rows.append({"bucket": bucket, **medians})
    return rows


def _through(backend: StageBackend, pixels: NDArray[np.uint8]) -> list[float]:
    slots, seconds = backend.admit(pixels), []
    for stage in range(backend.stages):
        start = time.perf_counter()
        backend.collect(backend.launch(stage, slots))
        seconds.append(time.perf_counter() - start)
    backend.release(slots)
    return seconds
