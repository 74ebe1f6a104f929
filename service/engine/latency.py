"""How long a batch takes: measured at warm-up, corrected by every batch that runs, and what follows for batch sizes.

Pure: no clock.
"""

import numpy as np
from numpy.typing import NDArray

PACE = 0.1
"""Of the newest batch in the pace of the whole device: ten batches outweigh a stray one."""

WEIGHT = 0.02
"""Of the newest batch in what sets its own stage and bucket apart. Little: by a few stray batches the best bucket would
look worse than its neighbours, and while it is not chosen nothing puts that right."""

FORGET = 0.05
"""Of what sets a bucket apart, at every refresh: so that one that is not chosen is tried again."""

STRAY = 3.0
"""A batch that took longer than so many times its prediction says no more than that."""

REFRESH = 64
"""Batches after which the sizes are worked out anew."""

NEARLY = 0.01
"""A batch whose time an image is within this of the best is as good: the smaller one is answered earlier."""

COVERED = 0.95
"""Share of batches that end within their predicted time, the margin included."""

LEAST = 1e-9
"""Seconds; nothing takes less, not even what was never measured."""


class LatencyModel:
    """t_k(b), seconds of a batch of stage k (0-based) in bucket b. `seconds` [K, len(buckets)] is where it begins.

    `margin` is the factor on predictions that are promised to somebody; it settles where COVERED of the batches end in
    time, and is at least 1. A device that is slower than it was, or shared, is so for all stages and buckets: what a
    batch took over what it should have corrects the pace of all, and a little its own entry.
    """

    def __init__(self, buckets: tuple[int, ...], seconds: NDArray[np.float64]) -> None:
        self.buckets = buckets
        self._measured = np.maximum(seconds, LEAST)
        self._apart = np.ones_like(self._measured)
        self._pace = 1.0
        self._bucket = np.searchsorted(buckets, np.arange(buckets[-1] + 1)).tolist()
        self.margin = 1.1
        self._until_refresh = REFRESH
        self._refresh()

    def learn(self, stage: int, images: int, seconds: float) -> None:
        """A batch of `images` took so long."""
        ratio = min(STRAY, seconds / self.predict(stage, images))
        # The quantile by small steps: up by nineteen, down by one, so that one batch in twenty may be late.
        self.margin = min(STRAY, max(1.0, self.margin + 0.01 * (COVERED - (ratio <= self.margin))))
        self._pace *= 1 + PACE * (ratio - 1)
        self._apart[stage, self._bucket[min(images, self.buckets[-1])]] *= 1 + WEIGHT * (ratio - 1)
        self._until_refresh -= 1
        if not self._until_refresh:
            self._until_refresh = REFRESH
            self._apart **= 1 - FORGET
            self._refresh()

    def predict(self, stage: int, images: int) -> float:
        """Seconds a batch of `images` will take; more than the largest bucket counts as one full batch."""
        b = self._bucket[min(images, self.buckets[-1])]
        return self._pace * float(self._measured[stage, b] * self._apart[stage, b])

    def longest_within(self, stage: int, seconds: float) -> int:
        """The largest bucket whose batch, with the margin, takes no longer than that; 0 when none is so short."""
        takes = self._measured[stage] * self._apart[stage] * self._pace
        within = np.flatnonzero(takes * self.margin <= seconds)
        return self.buckets[within[-1]] if len(within) else 0

    def full(self, stage: int) -> int:
        """How many images make a batch that is worth going first: the smallest bucket that wastes next to nothing."""
        return self._full[stage]

    def take(self, stage: int, waiting: int) -> int:
        """How many of `waiting` images (1 or more) to run in one batch.

        At most the largest bucket, and at least half of what waits or of a full batch, whichever is less: between two
        buckets, running fewer without padding may cost less an image than running all with it.
        """
        return self._take[stage][min(waiting, self.buckets[-1])]

    def worth(self, stage: int, waiting: int) -> float:
        """Share of the device's best rate, over this stage, that running `waiting` images now would reach: 0 to 1."""
        return self._worth[stage][min(waiting, self.buckets[-1])]

    @property
    def best(self) -> list[float]:
        """Seconds an image takes in every stage, [K], in the batches that suit it best."""
        return [self._pace * best for best in self._best]

    def _refresh(self) -> None:
        buckets, seconds = np.array(self.buckets), self._measured * self._apart
        sizes = np.arange(self.buckets[-1] + 1)
        an_image = seconds / buckets
        best = an_image.min(axis=1)
        rates = sizes / seconds[:, self._bucket]  # of every number of images in its own bucket
        # Powers of two, so that a full batch of one stage is a multiple or a divisor of every other's.
        regular = (buckets & (buckets - 1) == 0) | (buckets == buckets[-1])
        fit = np.where(regular, an_image, np.inf)
        full = buckets[np.argmax(fit <= fit.min(axis=1, keepdims=True) * (1 + NEARLY), axis=1)]
        worth, take = rates.copy(), np.tile(sizes, (len(full), 1))
        for b, bucket in reversed(list(enumerate(self.buckets))):
            rate = (1 / an_image[:, b])[:, None]
            enough = (sizes >= bucket) & (2 * bucket >= np.minimum(sizes, full[:, None]))
            better = enough & (rate > worth * (1 + NEARLY))
            take, worth = np.where(better, bucket, take), np.where(better, rate, worth)
        self._best: list[float] = best.tolist()
        self._full: list[int] = full.tolist()
        self._take: list[list[int]] = take.tolist()
        self._worth: list[list[float]] = (worth * best[:, None]).tolist()


# FROM service/engine/latency.py:
# How much device time what waits will take. Pure.

MEMORY = 1000
"""Images after which a share of survivors is forgotten: the mix of images and thresholds changes with the clients."""


class Backlog:
    """Of a cascade of `stages`, from the shares that went on of late and the device's best times (`times.best`)."""

    def __init__(self, stages: int, times: LatencyModel) -> None:
        self._times = times
        self._survive = [1.0] * stages  # before anything is known, everything goes to the end
        self._survive[-1] = 0.0
        self.work_seconds = 0.0

    def ran(self, stage: int, images: int, onward: int) -> None:
        """A batch of `images` has run, of which `onward` go on."""
        self.work_seconds += images * self._times.best[stage]
        weight = images / (images + MEMORY)
        self._survive[stage] += weight * (onward / images - self._survive[stage])

    def an_image(self) -> list[float]:
        """Device seconds that an image before each stage still needs, [K]."""
        needs, later = [], 0.0
        for best, survive in zip(reversed(self._times.best), reversed(self._survive), strict=True):
            later = best + survive * later
            needs.append(later)
        return needs[::-1]

    def later(self, stage: int, images: int) -> float:
        """Device seconds that `images` aboard a batch of `stage` need after it."""
        return images * (self.an_image()[stage] - self._times.best[stage])

    def seconds(self, waiting: list[int]) -> float:
        """Device seconds that `waiting` [K] images need."""
        return sum(images * needs for images, needs in zip(waiting, self.an_image(), strict=True))


# FROM service/engine/latency.py:
# Whose turn it is among the stages, deadlines apart. Pure.

PATIENCE = 16
"""Batches that a stage with waiting tickets lets go before it. Less, and thin batches go while others are full."""

ALIKE = 0.1
"""Batches whose worth differs by less than this are alike."""


class Turns:
    """Counts how often each of `stages` stages has been passed over."""

    def __init__(self, stages: int, times: LatencyModel, patience: int = PATIENCE) -> None:
        self._times = times
        # With everything waiting, round and round is the best there is.
        self.patience = max(patience, stages - 1)
        self._passed_over = [0] * stages

    def impatient(self, waiting: list[int]) -> int | None:
        """The stage that has been passed over too often, or must go now lest another one is; None if there is none."""
        if max(self._passed_over) + len(waiting) <= self.patience:
            return None
        stages = sorted((k for k, waits in enumerate(waiting) if waits), key=lambda k: -self._passed_over[k])
        # Run one after the other from now on, each would have been passed over so often by then.
        if any(self._passed_over[k] + turn >= self.patience for turn, k in enumerate(stages)):
            return stages[0]
        return None

    def worthiest(self, waiting: list[int]) -> int:
        """The deepest stage with a full batch; else the one that wastes the least, the deeper where they are alike."""
        for stage in reversed(range(len(waiting))):
            if waiting[stage] >= self._times.full(stage):
                return stage
        worth = [self._times.worth(k, waits) if waits else -1.0 for k, waits in enumerate(waiting)]
        most = max(worth)
        return max(k for k, each in enumerate(worth) if each >= most - ALIKE and waiting[k])

    def taken(self, stage: int, waiting: list[int]) -> None:
        """`stage` goes; the others that wait are passed over."""
        for k, waits in enumerate(waiting):
            self._passed_over[k] = self._passed_over[k] + 1 if waits and k != stage else 0
