"""How many threads a run on a CPU computes with, found by a short measurement."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from msmlp.model.platform import cores

ROUNDS = 3
GAIN = 1.1
"""More threads must be so much faster: they wait for each other, and collapse where anything else runs."""


def fastest_threads(step: Callable[[], object], counts: Sequence[int] | None = None) -> int:
    """The number of threads with which `step` is fastest, by the median of ROUNDS; torch's own number is left as it is.

    `counts`, in rising order, are tried; default: powers of two up to the cores that there are, and all of them. They
    take turns, so that a slow moment of the machine does not fall on one of them alone.
    """
    before, counts = torch.get_num_threads(), counts or _counts()
    times: dict[int, list[float]] = {count: [] for count in counts}
    try:
        for _ in range(ROUNDS + 1):  # the first warms up
            for count in counts if len(counts) > 1 else ():
                torch.set_num_threads(count)
                times[count].append(_seconds(step))
    finally:
        torch.set_num_threads(before)
    best = counts[0]
    for count in counts[1:]:
        if statistics.median(times[count][1:]) * GAIN < statistics.median(times[best][1:]):
            best = count
    return best


def _counts() -> list[int]:
    # What OMP_NUM_THREADS allows, and a container's limit, which OpenMP does not know.
    most = max(1, min(torch.get_num_threads(), cores()))
    return sorted({most, *(2**power for power in range(most.bit_length()))})


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
