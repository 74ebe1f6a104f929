"""From exit shares to thresholds. Shares are the portions of all images that should leave at exits 1...K.

A threshold of 0 lets every image go, 1 none (model/exits.py). All solvers are deterministic: equal scores fall on the
same side.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits import leaves

Scores = NDArray[np.floating]
Thresholds = NDArray[np.float64]
Solver = Callable[[Scores, NDArray[np.float64]], Thresholds]

NEVER, ALWAYS = 1.0, 0.0


def survivor_conditional(scores: Scores, shares: NDArray[np.float64]) -> Thresholds:
    """Each threshold from the images that are still there: the corrected Algorithm 1.

    Args:
        scores: [N, K] validation scores of every exit.
        shares: [K], summing to 1.

    Returns:
        [K - 1] thresholds; every exit but the last gets its share to within one group of equal scores.
    """
    images, exits = scores.shape
    thresholds = np.full(exits - 1, NEVER)
    alive = np.ones(images, dtype=bool)
    for k in range(exits - 1):
        own = scores[alive, k].astype(np.float64)
        thresholds[k] = _between(np.sort(own)[::-1], int(np.floor(images * shares[k] + 1e-9)))
        alive &= ~leaves(scores[:, k], thresholds[k])
    return thresholds


def algorithm_1(scores: Scores, shares: NDArray[np.float64]) -> Thresholds:
    """The paper's Algorithm 1 as its text means it: descending order, but every exit looks at all images."""
    images = len(scores)
    return np.array(
        [
            _between(np.sort(scores[:, k].astype(np.float64))[::-1], int(np.floor(images * share + 1e-9)))
            for k, share in enumerate(shares[:-1])
        ],
        dtype=np.float64,
    )


def algorithm_1_literal(scores: Scores, shares: NDArray[np.float64]) -> Thresholds:
    """Algorithm 1 as printed: T[i] = sorted ascending [W[i] · len(V)]. For the record."""
    images = len(scores)
    index = [min(images - 1, int(np.floor(images * share + 1e-9))) for share in shares[:-1]]
    return np.array([float(np.sort(scores[:, k])[i]) for k, i in enumerate(index)], dtype=np.float64)


def _between(descending: NDArray[np.float64], count: int) -> float:
    """A threshold that lets the `count` largest go: midway to the next one."""
    if count <= 0:
        return NEVER
    if count >= len(descending):
        return ALWAYS
    middle = (descending[count - 1] + descending[count]) / 2
    # A softmax can round to 1, and a threshold of exactly 1 would mean "never".
    return float(min(middle, np.nextafter(1.0, 0.0)))


SOLVERS: dict[str, Solver] = {
    "survivor-conditional": survivor_conditional,
    "algorithm-1": algorithm_1,
    "algorithm-1-literal": algorithm_1_literal,
}
