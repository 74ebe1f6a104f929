"""The one exit rule. Calibration and the scheduler call it; nothing else compares a score with a threshold.

An image leaves at exit i if its score ≥ threshold i; at a threshold of 1 none does, at a threshold of 0 all do.
`min_exit` and `max_exit` are hard bounds; after the last exit everything leaves.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Reason(IntEnum):
    """Why an image left, or that it goes on. Answers have these names in lower case."""

    GOES_ON = 0
    CONFIDENT = 1
    FINAL = 2
    MAX_EXIT = 3
    DEADLINE = 4
    EXPIRED = 5


# As numpy numbers: `decide` runs after every batch, and looking up an enum costs as much as comparing.
GOES_ON, CONFIDENT, FINAL, MAX_EXIT = (np.int8(code) for code in list(Reason)[:4])


def leaves(scores: NDArray[np.floating], thresholds: Floats | float) -> NDArray[np.bool_]:
    """Which scores [n] reach their threshold, one or [n]."""
    # One-dimensional, or older numpy would compare with a float32 as float32.
    limit = np.array(thresholds, dtype=np.float64, ndmin=1)
    sure: NDArray[np.bool_] = (scores >= limit) & (limit < 1)
    return sure


def outlook(
    exits: int, thresholds: Floats, min_exit: int = 1, max_exit: int | None = None
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """For one image and every exit [K], what `decided` needs: the least score that leaves (inf: none does), and the
    reason code of every other score.
    """
    return _outlook(exits, thresholds.astype(np.float64).tobytes(), min_exit, exits if max_exit is None else max_exit)


@lru_cache(maxsize=256)  # most requests have the thresholds of an operating point
def _outlook(exits: int, float64: bytes, min_exit: int, max_exit: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    leaving = enumerate(np.frombuffer(float64).tolist(), start=1)
    least = [limit if limit < 1 and exit >= min_exit else np.inf for exit, limit in leaving]
    others = [int(MAX_EXIT if exit >= max_exit else GOES_ON) for exit in range(1, exits)]
    return (*least, np.inf), (*others, int(FINAL))


def decided(scores: NDArray[np.floating], least: Floats, others: NDArray[np.int8]) -> NDArray[np.int8]:
    """`decide` with the columns [n] that `outlook` has for this exit: the reason codes [n], written into `others`."""
    others[scores >= least] = CONFIDENT
    return others


def decide(
    exit: int,
    exits: int,
    scores: NDArray[np.floating],
    thresholds: Floats,
    min_exit: NDArray[np.integer] | int,
    max_exit: NDArray[np.integer] | int,
) -> NDArray[np.int8]:
    """The reason codes, int8 [n], of images after an exit.

    Args:
        exit: the exit just computed, 1...exits.
        exits: K.
        scores: [n], in [0, 1].
        thresholds: [n], each image's threshold at this exit; ignored at the last.
        min_exit: 0...K, one or [n]; 0 demands no exit, which differs from 1 only for the deadline (scheduler).
        max_exit: 1...K, one or [n].
    """
    if exit == exits:
        return np.full(len(scores), FINAL)
    limits = np.asarray(thresholds, dtype=np.float64)
    least = np.where((limits < 1) & (np.asarray(min_exit) <= exit), limits, np.inf)
    others = np.where(np.asarray(max_exit) <= exit, MAX_EXIT, GOES_ON)
    return decided(scores, np.broadcast_to(least, len(scores)), np.resize(others, len(scores)))


def exit_of(
    scores: NDArray[np.floating], thresholds: Floats, min_exit: int = 1, max_exit: int | None = None
) -> NDArray[np.int64]:
    """The exits 1...K [N] at which images leave, from the scores of every exit [N, K] and thresholds [K - 1].

    No image leaves before `min_exit` or after `max_exit` (K by default).
    """
    exits = scores.shape[1]
    left = np.zeros(len(scores), dtype=np.int64)
    for k in range(1, exits + 1):
        threshold = thresholds[k - 1] if k < exits else 0.0
        reasons = decide(k, exits, scores[:, k - 1], np.full(len(scores), threshold), min_exit, max_exit or exits)
        left[(left == 0) & (reasons != Reason.GOES_ON)] = k
    return left
