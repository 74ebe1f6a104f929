"""Stage times t_k(b): how they are measured, and the bound that follows from them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StageCosts:
    """`seconds` [K, len(buckets)] is t_k(b): how long stage k (0-based) takes for a batch in bucket b."""

    buckets: tuple[int, ...]
    seconds: Floats

    @cached_property
    def per_image(self) -> Floats:
        each: Floats = self.seconds / np.array(self.buckets)
        return each

    def images_per_second(self, reach: Floats) -> float:
        """The bound: 1 / Σ_k reach_k · min_b t_k(b) / b, where reach_k is the share of images that enter stage k."""
        return float(1 / (reach * self.per_image.min(axis=1)).sum())

    def best_batch(self) -> int:
        """The bucket in which all stages together cost least per image: argmin_b Σ_k t_k(b) / b."""
        return self.buckets[int(self.per_image.sum(axis=0).argmin())]


def reach_of(exits: Ints, stages: int) -> Floats:
    """The share of images that enter each stage, [K], from the exits (1...K) at which they leave."""
    return np.array([(exits > k).mean() for k in range(stages)])


def backend_times(backend: StageBackend, pixels: Pixels) -> Floats:
    """The same through the backend, with gather, scatter and copy-back, [K]."""
    slots = backend.admit(pixels)
    seconds = []
    for stage in range(backend.stages):
        start = time.perf_counter()
        backend.collect(backend.launch(stage, slots))
        seconds.append(time.perf_counter() - start)
    backend.release(slots)
    return np.array(seconds)


class StageSamples:
    """Samples of t_k(b) in every bucket; `times` gives the seconds of every stage over one batch, [K]."""

    def __init__(self, times: Callable[[Pixels], Floats], buckets: tuple[int, ...], images: Pixels) -> None:
        self._times, self._images = times, images
        self._samples: dict[int, list[Floats]] = {bucket: [] for bucket in buckets}

    def sample(self, bucket: int) -> None:
        images = self._images[:bucket]
        self._times(images)  # what ran before has taken the caches: a bound must not pay for that
        self._samples[bucket].append(self._times(images))

    def costs(self) -> StageCosts:
        """The medians."""
        medians = [np.median(samples, axis=0) for samples in self._samples.values()]
        return StageCosts(tuple(self._samples), np.stack(medians, axis=-1))

    def spread(self) -> float:
        """The standard deviation of the logarithm of a sample over its median, over all stages and buckets; outliers
        do not count."""
        ratios = [np.log(np.array(samples) / np.median(samples, axis=0)) for samples in self._samples.values()]
        low, high = np.percentile(np.concatenate([each.ravel() for each in ratios]), (16, 84))
        return float((high - low) / 2)
