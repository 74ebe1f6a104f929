"""One offered load as the contract's row, with an ideal server beside it. Pure."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.costs import StageCosts
from msmlp.bench.ideal import ideal_latencies
from msmlp.bench.load import Seen
from msmlp.bench.offer import Offer
from msmlp.service.engine.brownout import LEVELS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Context:
    """What rows are judged by: t_k(b), GFLOPs by exit, unloaded seconds by request size, the longest wait allowed."""

    costs: StageCosts
    gflops: Sequence[float]
    unloaded: Mapping[int, float]
    max_wait: float


@dataclass(frozen=True)
class Judged:
    """An offer and what came of it."""

    offer: Offer
    seen: Seen
    context: Context

    @cached_property
    def accepted(self) -> list[int]:
        """The requests that were answered, in the order they were due."""
        return sorted(self.seen.outcomes)

    @cached_property
    def exits(self) -> list[NDArray[np.int64]]:
        """Where the images of each left."""
        return [self.seen.outcomes[i].result.exit for i in self.accepted]

    @cached_property
    def latencies(self) -> Floats:
        """Seconds from due to answer, of every image answered."""
        due = self.seen.start + self.offer.due
        return _joined([self.seen.outcomes[i].result.landed - due[i] for i in self.accepted])

    @cached_property
    def alone(self) -> Floats:
        """For every image answered, the unloaded full-cascade seconds of its request's size."""
        sizes = self.offer.sizes[self.accepted]
        return np.repeat([self.context.unloaded[size] for size in sizes.tolist()], sizes)

    def row(self, seconds: float) -> dict[str, Any]:
        """The document's row; `seconds` is for how long requests were offered."""
        offered = int(self.offer.sizes.sum())
        return {
            "offered": offered / seconds,
            "achieved": len(self.latencies) / max(seconds, self.seen.seconds),
            **_percentiles("ms", 1e3 * self.latencies, (50, 95, 99)),
            "slowdown": _quantiles(self.latencies / self.alone, (50, 99)) if len(self.latencies) else None,
            "ideal": self._ideal(),
            "queue_ms": self._queue(),
            "mean_batch": self._mean_batch(),
            "mean_gflops": self._mean_gflops(),
            "degraded": self._degraded(),
            "late": float((self.latencies > self.context.max_wait).mean()) if len(self.latencies) else 0.0,
            "shed": sum(images for _, images, _ in self.seen.shed) / max(1, offered),
            **self._shedding(),
            **self._generator(),
        }

    def _ideal(self) -> dict[str, float] | None:
        """An ideal server with the same requests, those that were answered, and the exits their images had."""
        if not self.accepted:
            return None
        due = self.offer.due[self.accepted].tolist()
        ideal = np.concatenate(ideal_latencies(due, self.exits, self.context.costs)) / self.alone
        p50, p99 = np.percentile(ideal, (50, 99))
        over = float(np.percentile(self.latencies / self.alone, 99) / p99)
        return {"p50_slowdown": float(p50), "p99_slowdown": float(p99), "p99_service_over_ideal": over}

    def _queue(self) -> dict[str, float] | None:
        """Milliseconds an image waited before all its stages together."""
        waits = []
        for i, exits in zip(self.accepted, self.exits, strict=True):
            queue = self.seen.outcomes[i].result.history.queue_seconds
            waits.append((queue * (np.arange(queue.shape[1]) < exits[:, None])).sum(axis=1))
        return _quantiles(1e3 * np.concatenate(waits), (50, 99)) if waits else None

    def _mean_batch(self) -> list[float]:
        stages, seen = len(self.context.gflops), self.seen
        return [round(seen.batch_images[k] / max(1, seen.batches[k]), 2) for k in range(stages)]

    def _mean_gflops(self) -> float | None:
        if not self.accepted:
            return None
        return float(np.concatenate([[0.0], self.context.gflops])[np.concatenate(self.exits)].mean())

    def _degraded(self) -> float:
        """The share of images answered from a cheaper operating point than they asked for."""
        outcomes = (self.seen.outcomes[i] for i in self.accepted)
        browned_out = sum(len(o.result.exit) for o in outcomes if o.source == "brownout")
        return browned_out / max(1, len(self.latencies))

    def _shedding(self) -> dict[str, Any]:
        """Whether accuracy fell before anybody was refused: the brown-out level when images were shed."""
        shed, reasons = self.seen.shed, Counter[str]()
        for reason, images, _ in shed:
            reasons[reason] += images
        before = sum(images for _, images, level in shed if level < LEVELS)
        return {
            "shed_reasons": dict(reasons),
            "brownout_at_first_shed": shed[0][2] if shed else None,
            "shed_before_top_level": before / sum(reasons.values()) if shed else None,
        }

    def _generator(self) -> dict[str, Any]:
        """How much of the machine the generator took: in cores, of as many as there are; and how late it was."""
        seen, wall = self.seen, max(self.seen.seconds, 1e-9)
        parts = {"generator": seen.generator_cpu, "front": seen.front_cpu, "process": seen.process_cpu}
        return {
            "cpu_cores": {**{name: cpu / wall for name, cpu in parts.items()}, "of": os.cpu_count()},
            "generator_lag_ms": _quantiles(1e3 * np.array(seen.lag), (50, 99)) if seen.lag else None,
        }


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros(0)


def _percentiles(unit: str, values: Floats, of: tuple[int, ...]) -> dict[str, float | None]:
    found = np.percentile(values, of).tolist() if len(values) else [None] * len(of)
    return {f"p{p}_{unit}": value for p, value in zip(of, found, strict=True)}


def _quantiles(values: NDArray[np.floating], of: tuple[int, ...]) -> dict[str, float]:
    return {"mean": float(values.mean()), **{f"p{p}": float(np.percentile(values, p)) for p in of}}
