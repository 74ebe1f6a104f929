"""How long a batch takes: measured at warm-up, corrected by every batch that runs. Pure: no clock."""

import numpy as np
from numpy.typing import NDArray

WEIGHT = 0.1
"""Of the newest batch in the running mean: ten batches outweigh a stray one."""


class StageTimes:
    """t_k(b), seconds of a batch of stage k (0-based) in bucket b. `seconds` [K, len(buckets)] is where it begins."""

    def __init__(self, buckets: tuple[int, ...], seconds: NDArray[np.float64]) -> None:
        self._buckets = np.array(buckets)
        self._seconds = seconds.copy()

    def learn(self, stage: int, images: int, seconds: float) -> None:
        """A batch of `images` took so long."""
        b = self._bucket(images)
        self._seconds[stage, b] += WEIGHT * (seconds - self._seconds[stage, b])

    def predict(self, stage: int, images: int) -> float:
        """Seconds a batch of `images` will take; more than the largest bucket counts as one full batch."""
        return float(self._seconds[stage, self._bucket(images)])

    def _bucket(self, images: int) -> int:
        return min(int(np.searchsorted(self._buckets, images)), len(self._buckets) - 1)
