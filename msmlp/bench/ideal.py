"""An ideal server to hold the service against: the same stage times, arrivals and exits, and no host at all. Pure.

It is first come, first served, and work-conserving: whenever it is free and anybody waits, it starts. The requests that
wait then go together, oldest first, whole requests, as long as they fit the largest batch (one larger than that goes
alone, in several batches a stage). They take Σ_k t_k(bucket of those left at stage k), nobody joins on the way, and an
image is answered when the stage it leaves at has ended. Deciding, copying and answering cost nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.costs import Floats, StageCosts


def ideal_latencies(
    arrivals: Sequence[float], exits: Sequence[NDArray[np.int64]], costs: StageCosts
) -> list[NDArray[np.float64]]:
    """Seconds from arrival to answer of every image.

    Args:
        arrivals: of every request, in seconds, ascending.
        exits: for every request the exits 1...K at which its images leave, at least one.
        costs: t_k(b); the largest bucket is the largest batch.

    Returns:
        For every request the latencies of its images, in the order of `exits`.
    """
    latencies: list[NDArray[np.float64]] = []
    free, first = 0.0, 0
    while first < len(arrivals):
        start = max(free, arrivals[first])
        last = _joined(first, start, arrivals, exits, costs.buckets[-1])
        ends = start + _exit_seconds(np.concatenate(exits[first:last]), costs)
        latencies += [ends[exits[i] - 1] - arrivals[i] for i in range(first, last)]
        free, first = float(ends[-1]), last
    return latencies


def _joined(
    first: int, start: float, arrivals: Sequence[float], exits: Sequence[NDArray[np.int64]], largest: int
) -> int:
    """One past the last request that goes together with `first` at `start`."""
    images, last = len(exits[first]), first + 1
    while last < len(arrivals) and arrivals[last] <= start and images + len(exits[last]) <= largest:
        images += len(exits[last])
        last += 1
    return last


def _exit_seconds(exits: NDArray[np.int64], costs: StageCosts) -> Floats:
    """Seconds from the start until each stage has ended for those who reach it, [K]."""
    stages = len(costs.seconds)
    left = [int((exits > k).sum()) for k in range(stages)]
    return np.cumsum([costs.stage_seconds(k, n) if n else 0.0 for k, n in enumerate(left)])
