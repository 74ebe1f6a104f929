"""The one exit rule. Calibration and the scheduler call it; nothing else compares a score with a threshold.

An image leaves exit i when its score ≥ threshold i; a threshold of 1 never lets go, a threshold of 0 always does.
`min_exit` and `max_exit` are hard bounds; after the last exit everything leaves.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Reason(IntEnum):
    """Why an image left, or that it goes on. Answers have the names in lower case."""

    GOES_ON = 0
    CONFIDENT = 1
    FINAL = 2
    MAX_EXIT = 3
    DEADLINE = 4
    EXPIRED = 5


# The same as numpy's numbers: `decide` runs after every batch, and looking up an enum costs as much as comparing.
GOES_ON, CONFIDENT, FINAL, MAX_EXIT = (np.int8(code) for code in list(Reason)[:4])


def leaves(scores: NDArray[np.floating], thresholds: Floats | float) -> NDArray[np.bool_]:
    """Which images are sure enough: the comparison itself, scores [n] against one threshold or [n]."""
    # One-dimensional, or older numpy would compare with a float32 as float32.
    limit = np.array(thresholds, dtype=np.float64, ndmin=1)
    sure: NDArray[np.bool_] = (scores >= limit) & (limit < 1)
    return sure


def decide(
    exit: int,
    exits: int,
    scores: NDArray[np.floating],
    thresholds: Floats,
    min_exit: NDArray[np.integer] | int,
    max_exit: NDArray[np.integer] | int,
) -> NDArray[np.int8]:
    """What becomes of images whose scores at exit `exit` (1-based, of `exits`) are known.

    Args:
        exit: the exit just computed, 1...exits.
        exits: K.
        scores: [n], in [0, 1].
        thresholds: [n], each image's threshold at this exit; ignored at the last.
        min_exit: 0...K, one or [n]; 0 demands no exit, which differs from 1 only for the deadline (scheduler).
        max_exit: 1...K, one or [n].

    Returns:
        Reason codes, int8 [n].
    """
    if exit == exits:
        return np.full(len(scores), FINAL)
    confident = leaves(scores, thresholds) & (np.asarray(min_exit) <= exit)
    bound = np.where(np.asarray(max_exit) <= exit, MAX_EXIT, GOES_ON)
    return np.where(confident, CONFIDENT, bound)


def exit_of(
    scores: NDArray[np.floating], thresholds: Floats, min_exit: int = 1, max_exit: int | None = None
) -> NDArray[np.int64]:
    """Where images leave when the scores of every exit are known.

    Args:
        scores: [N, K].
        thresholds: [K - 1].
        min_exit: no image leaves before this exit.
        max_exit: every image has left after this exit (default K).

    Returns:
        1...K, int64 [N].
    """
    exits = scores.shape[1]
    left = np.zeros(len(scores), dtype=np.int64)
    for k in range(1, exits + 1):
        threshold = thresholds[k - 1] if k < exits else 0.0
        reasons = decide(k, exits, scores[:, k - 1], np.full(len(scores), threshold), min_exit, max_exit or exits)
        left[(left == 0) & (reasons != Reason.GOES_ON)] = k
    return left
