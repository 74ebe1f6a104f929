"""The engine at saturation, its bound and the baselines, at one batch cap."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.costs import Floats, StageCosts
from msmlp.bench.stages import PlainStages, StageSamples
from msmlp.bench.strategies import Pixels, Saturated, full, masked, shrinking
from msmlp.model.backends.protocol import StageBackend, warm_up

BASELINES = ("full", "masked", "shrinking")
FIRST_SAMPLES = 5
"""Samples before the first round, from whose least the full model's best batch is chosen."""


class Saturation:
    """Runs and samples at one cap, round by round. The backend's largest bucket is the cap."""

    def __init__(self, backend: StageBackend, plain: PlainStages, images: Pixels, thresholds: Floats) -> None:
        self._backend, self._images, self._thresholds = backend, images, thresholds
        seconds = warm_up(backend)  # may step the buckets down
        self._samples = StageSamples(backend, plain, images)
        self._engine = Saturated(backend, seconds)
        for number in range(FIRST_SAMPLES):
            for bucket in backend.buckets:
                self._samples.sample(bucket, plain_first=bool(number % 2))
        self._full_batch = self._samples.least().best_batch()
        self._seconds: dict[str, list[float]] = {name: [] for name in ("engine", *BASELINES)}
        self._batches: dict[str, list[tuple[int, int]]] = {name: [] for name in self._seconds}

    def round(self, samples: int, rng: np.random.Generator) -> None:
        """Every way to serve once, and `samples` samples of every stage and bucket among them, in random order."""
        tasks: list[Callable[[], None]] = [partial(self._run, name) for name in self._seconds]
        for bucket in self._backend.buckets:
            for _ in range(samples):
                tasks.append(partial(self._samples.sample, bucket, plain_first=bool(rng.integers(2))))
        for i in rng.permutation(len(tasks)):
            tasks[i]()

    def _run(self, name: str) -> None:
        start = time.perf_counter()
        batches = self._serve(name)
        self._seconds[name].append(time.perf_counter() - start)
        self._batches[name] += batches

    def _serve(self, name: str) -> list[tuple[int, int]]:
        backend, images, thresholds = self._backend, self._images, self._thresholds
        if name == "full":
            return full(backend, images, self._full_batch)
        if name == "masked":
            return masked(backend, images, thresholds)
        if name == "shrinking":
            return shrinking(backend, images, thresholds)
        self._engine.run(images, thresholds)
        return self._engine.batches

    def costs(self) -> StageCosts:
        """t_k(b) through the backend, so far."""
        return self._samples.costs()[0]

    def document(self, reach: Floats) -> dict[str, Any]:
        """What came of it; `reach` [K] is the share of images that enter each stage."""
        costs, plain = self._samples.costs()
        speed = {name: len(self._images) / statistics.median(times) for name, times in self._seconds.items()}
        bound, contiguous = costs.images_per_second(reach), plain.images_per_second(reach)
        measured, predicted = self._measured(), self._predicted(costs, reach)
        return {
            "max_batch": self._backend.buckets[-1],
            "plain_images_per_second": contiguous,
            "bound_images_per_second": bound,
            "bound_over_plain": bound / contiguous,
            "engine_images_per_second": speed["engine"],
            "efficiency": speed["engine"] / bound,
            "full_batch": self._full_batch,
            "baselines": {name: speed[name] for name in BASELINES},
            "engine_over": measured,
            "predicted_over": predicted,
            "measured_over_predicted": {name: measured[name] / predicted[name] for name in BASELINES},
            "seconds_over_stage_seconds": self._overheads(costs),
            "mean_batch": {name: _mean_batch(self._batches[name], self._backend.stages) for name in self._batches},
            "stage_ms": _milliseconds(costs),
            "plain_stage_ms": _milliseconds(plain),
        }

    def _measured(self) -> dict[str, float]:
        """How many times the speed of each baseline, within a round, the median of rounds."""
        engine = self._seconds["engine"]
        return {
            name: statistics.median(b / e for b, e in zip(self._seconds[name], engine, strict=True))
            for name in BASELINES
        }

    def _overheads(self, costs: StageCosts) -> dict[str, float]:
        """What each way to serve took, over Σ t_k(b) of the batches it ran: what comes on top of the backend calls."""
        return {
            name: len(seconds) * statistics.median(seconds) / costs.batches_seconds(self._batches[name])
            for name, seconds in self._seconds.items()
        }

    def _predicted(self, costs: StageCosts, reach: Floats) -> dict[str, float]:
        """What the t_k say it should be.

        Against the full model `StageCosts.ratio_to_full`: the best that shares and costs allow. Against the others
        Σ t_k(b) over the batches that each ran, over the same sum of the engine's: what the sizes of its batches are
        worth.
        """
        engine = costs.batches_seconds(self._batches["engine"])
        ran = {name: costs.batches_seconds(self._batches[name]) / engine for name in ("masked", "shrinking")}
        return {"full": costs.ratio_to_full(reach), **ran}


def _mean_batch(batches: list[tuple[int, int]], stages: int) -> list[float]:
    sizes: list[NDArray[np.int64]] = [np.array([n for k, n in batches if k == stage]) for stage in range(stages)]
    return [round(float(of.mean()), 2) if len(of) else 0.0 for of in sizes]


def _milliseconds(costs: StageCosts) -> list[dict[str, Any]]:
    """Milliseconds by stage and bucket."""
    return [
        {"stage": k + 1, "ms": {str(b): round(1e3 * t, 4) for b, t in zip(costs.buckets, row, strict=True)}}
        for k, row in enumerate(costs.seconds.tolist())
    ]
