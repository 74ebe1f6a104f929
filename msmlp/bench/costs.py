"""What the measured stage times t_k(b) say: the device's bound, and how much faster one way to serve is. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Batches = Iterable[tuple[int, int]]
"""What ran: (stage 0-based, images) of every batch."""


@dataclass(frozen=True)
class StageCosts:
    """`seconds` [K, len(buckets)] is t_k(b): how long stage k (0-based) takes for a batch in bucket b."""

    buckets: tuple[int, ...]
    seconds: Floats

    @cached_property
    def per_image(self) -> Floats:
        """t_k(b) / b, [K, len(buckets)]."""
        each: Floats = self.seconds / np.array(self.buckets)
        return each

    def images_per_second(self, reach: Floats) -> float:
        """The bound: 1 / Σ_k reach_k · min_b t_k(b) / b, where reach_k is the share of images that enter stage k."""
        return float(1 / (reach * self.per_image.min(axis=1)).sum())

    def best_batch(self) -> int:
        """The bucket in which all stages together cost an image least: argmin_b Σ_k t_k(b) / b."""
        return self.buckets[int(self.per_image.sum(axis=0).argmin())]

    def ratio_to_full(self, reach: Floats) -> float:
        """How many times the speed of the full model shares and costs allow:

        min_b Σ_k t_k(b) / b  over  Σ_k reach_k · min_b t_k(b) / b.

        The full model keeps one batch through all stages, so it has one b; with exits every stage has its own best.
        """
        return float(self.per_image.sum(axis=0).min() * self.images_per_second(reach))

    def stage_seconds(self, stage: int, images: int) -> float:
        """Seconds of `images` through one stage: as many of the largest bucket as they fill, and one for the rest."""
        whole, rest = divmod(images, self.buckets[-1])
        seconds = whole * self.seconds[stage, -1]
        if rest:
            seconds += self.seconds[stage, int(np.searchsorted(self.buckets, rest))]
        return float(seconds)

    def batches_seconds(self, batches: Batches) -> float:
        """Σ t_k(b) over batches that ran, each in the smallest bucket that holds it."""
        return sum(self.stage_seconds(stage, images) for stage, images in batches)


def reach_of(exits: NDArray[np.int64], stages: int) -> Floats:
    """The share of images that enter each stage, [K], from the exits (1...K) at which they leave."""
    return np.array([(exits > k).mean() for k in range(stages)])
