"""What measured batch times imply: batch sizes, the device time that waiting images need, and the stage to run next.

Pure: no clock.
"""

import numpy as np
from numpy.typing import NDArray

PACE = 0.1
"""Weight of the newest batch in the pace of the whole device: ten batches outweigh an outlier."""

WEIGHT = 0.02
"""Weight of the newest batch in the correction of its own stage and bucket. Small: a few outliers would make the best
bucket look worse than its neighbours, and nothing corrects that while it is not chosen."""

FORGET = 0.05
"""Share of every bucket's own correction that is forgotten at a refresh, so that one not chosen is tried again."""

OUTLIER = 3.0
"""A batch that took longer than this many times its prediction counts as one that took just that."""

REFRESH = 256
"""Batches between two computations of the batch sizes."""

NEARLY, FEWER = 0.01, 0.1
"""A batch whose time per image is within the first share of the best counts as equal; the smaller one answers sooner.
Fewer images run than wait only if that saves more than the second: every batch costs the host something too."""

COVERED = 0.95
"""Share of batches that end within their predicted time, margin included."""

LEAST = 1e-9
"""Seconds; the prediction for batches that were never measured."""

MEMORY = 1000
"""Images over which survival rates are averaged: the mix of images and thresholds changes with the clients."""

PATIENCE = 16
"""How many batches may pass over a stage with waiting tickets. With fewer, thin batches run while others are full."""

ALIKE = 0.1
"""Batches whose worth differs by less than this are alike."""


class LatencyModel:
    """t_k(b), seconds of a batch of stage k (0-based) in bucket b. `seconds` [K, len(buckets)] is where it starts.

    `margin` is the factor on promised predictions; it settles where COVERED of the batches end in time, and is at
    least 1. A device that has become slower, or is shared, is slower for all stages and buckets: the ratio of a batch's
    time to its prediction corrects the pace of all, and a little its own entry.
    """

    def __init__(self, buckets: tuple[int, ...], seconds: NDArray[np.float64]) -> None:
        self.buckets = buckets
        self._measured = np.maximum(seconds, LEAST)
        self._correction = np.ones_like(self._measured)
        self._pace = 1.0
        self._bucket: list[int] = np.searchsorted(buckets, np.arange(buckets[-1] + 1)).tolist()
        self.margin = 1.1
        self.learnt = 0  # batches
        self._refresh()

    def learn(self, stage: int, images: int, seconds: float) -> None:
        ratio = min(OUTLIER, seconds / self.predict(stage, images))
        # The quantile in small steps: up by nineteen, down by one, so that one batch in twenty may be late.
        self.margin = min(OUTLIER, max(1.0, self.margin + 0.01 * (COVERED - (ratio <= self.margin))))
        self._pace *= 1 + PACE * (ratio - 1)
        self._seconds[stage][self._bucket[min(images, self.buckets[-1])]] *= 1 + WEIGHT * (ratio - 1)
        self.learnt += 1
        if self.learnt % REFRESH == 0:
            self._correction = np.array(self._seconds) / self._measured
            self._correction **= 1 - FORGET
            self._refresh()

    def predict(self, stage: int, images: int) -> float:
        """Seconds of a batch of `images`; more than the largest bucket counts as one full batch."""
        return self._pace * self._seconds[stage][self._bucket[min(images, self.buckets[-1])]]

    def longest_within(self, stage: int, seconds: float) -> int:
        """The largest bucket whose batch, margin included, takes at most `seconds`; 0 if there is none."""
        takes = np.array(self._seconds[stage]) * self._pace
        within = np.flatnonzero(takes * self.margin <= seconds)
        return self.buckets[within[-1]] if len(within) else 0

    def full(self, stage: int) -> int:
        """How many images make a batch worth running first: the smallest bucket that wastes almost nothing."""
        return self._full[stage]

    def take(self, stage: int, waiting: int) -> int:
        """How many of `waiting` images (1 or more) to run in one batch.

        At most the largest bucket, and at least half of the waiting images or of a full batch, whichever is less:
        between two buckets, running fewer without padding may cost less per image than running all with it.
        """
        return self._take[stage][min(waiting, self.buckets[-1])]

    def worth(self, stage: int, waiting: int) -> float:
        """Share of this stage's best rate that running `waiting` images now would reach, 0 to 1."""
        return self._worth[stage][min(waiting, self.buckets[-1])]

    @property
    def best(self) -> list[float]:
        """Seconds per image of every stage [K], in batches of the best size."""
        return [self._pace * best for best in self._best]

    def _refresh(self) -> None:
        buckets, seconds = np.array(self.buckets), self._measured * self._correction
        # Plain numbers: a batch asks for and changes single ones.
        self._seconds: list[list[float]] = seconds.tolist()
        sizes = np.arange(self.buckets[-1] + 1)
        per_image = seconds / buckets
        best = per_image.min(axis=1)
        rates = sizes / seconds[:, self._bucket]  # of every number of images in its own bucket
        # Powers of two, so that a full batch of one stage is a multiple or a divisor of every other's.
        regular = (buckets & (buckets - 1) == 0) | (buckets == buckets[-1])
        fit = np.where(regular, per_image, np.inf)
        full = buckets[np.argmax(fit <= fit.min(axis=1, keepdims=True) * (1 + NEARLY), axis=1)]
        worth, take = rates.copy(), np.tile(sizes, (len(full), 1))
        for b, bucket in reversed(list(enumerate(self.buckets))):
            rate = (1 / per_image[:, b])[:, None]
            enough = (sizes >= bucket) & (2 * bucket >= np.minimum(sizes, full[:, None]))
            better = enough & (rate > worth * (1 + FEWER))
            take, worth = np.where(better, bucket, take), np.where(better, rate, worth)
        self._best: list[float] = best.tolist()
        self._full: list[int] = full.tolist()
        self._take: list[list[int]] = take.tolist()
        self._worth: list[list[float]] = (worth * best[:, None]).tolist()


class LoadEstimate:
    """Device time that images in a cascade of `stages` still need, from recent survival rates and `latency.best`."""

    def __init__(self, stages: int, latency: LatencyModel) -> None:
        self._latency = latency
        self._survive = [1.0] * stages  # before anything is known, every image goes to the last stage
        self._survive[-1] = 0.0
        self.work_seconds = 0.0
        self._needs, self._learnt = list[float](), -1

    def ran(self, stage: int, images: int, onward: int) -> None:
        """A batch of `images` has run, of which `onward` go on."""
        self.work_seconds += images * self._latency.best[stage]
        weight = images / (images + MEMORY)
        self._survive[stage] += weight * (onward / images - self._survive[stage])
        self._learnt = -1

    def per_image(self) -> list[float]:
        """Device seconds that an image waiting for each stage still needs, [K]."""
        if self._learnt != self._latency.learnt:
            self._learnt = self._latency.learnt
            needs, later = [], 0.0
            for best, survive in zip(reversed(self._latency.best), reversed(self._survive), strict=True):
                later = best + survive * later
                needs.append(later)
            self._needs = needs[::-1]
        return self._needs

    def later(self, stage: int, images: int) -> float:
        """Device seconds that `images` in a batch of `stage` need after it."""
        return images * (self.per_image()[stage] - self._latency.best[stage])

    def seconds(self, waiting: list[int]) -> float:
        """Device seconds that `waiting` [K] images need."""
        return sum(images * needs for images, needs in zip(waiting, self.per_image(), strict=True))


class StageSelector:
    """Chooses the stage to run, deadlines apart, and counts how often each of `stages` has been passed over."""

    def __init__(self, stages: int, latency: LatencyModel, patience: int = PATIENCE) -> None:
        self._latency = latency
        # With tickets waiting for every stage, nothing beats round robin.
        self.patience = max(patience, stages - 1)
        self._passed_over = [0] * stages

    def impatient(self, waiting: list[int]) -> int | None:
        """The stage that must run now so that none is passed over too often; None if there is no such stage."""
        if max(self._passed_over) + len(waiting) <= self.patience:
            return None
        stages = sorted((k for k, waits in enumerate(waiting) if waits), key=lambda k: -self._passed_over[k])
        # If they ran in this order, each would have been passed over this often by its turn.
        if any(self._passed_over[k] + turn >= self.patience for turn, k in enumerate(stages)):
            return stages[0]
        return None

    def worthiest(self, waiting: list[int]) -> int:
        """The deepest stage with a full batch; else the one that wastes least, the deeper one where they are alike."""
        if waiting.count(0) == len(waiting) - 1:  # mostly, when few wait
            return waiting.index(max(waiting))
        for stage in reversed(range(len(waiting))):
            if waiting[stage] >= self._latency.full(stage):
                return stage
        worth = [self._latency.worth(k, waits) if waits else -1.0 for k, waits in enumerate(waiting)]
        most = max(worth)
        return max(k for k, each in enumerate(worth) if each >= most - ALIKE and waiting[k])

    def taken(self, stage: int, waiting: list[int]) -> None:
        for k, waits in enumerate(waiting):
            self._passed_over[k] = self._passed_over[k] + 1 if waits and k != stage else 0
