"""How long a stage takes for a batch: through the backend, and as a plain module on a contiguous batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.backends.protocol import StageBackend
from model.backends.torch import TorchBackend
from model.served import served_stages
from model.weights import Weights

Pixels = NDArray[np.uint8]
Seconds = NDArray[np.float64]


class PlainStages:
    """The folded stages without slots: contiguous batches in, features kept as tensors."""

    def __init__(self, weights: Weights, backend: TorchBackend) -> None:
        self._device, self._dtype = torch.device(backend.device), getattr(torch, backend.dtype)
        self._stages = served_stages(weights, (1.0,) * backend.stages)
        for stage in self._stages:
            stage.to(self._device)
            stage.stage.to(self._dtype)

    @torch.inference_mode()
    def times(self, pixels: Pixels) -> Seconds:
        """Seconds of every stage over one batch, [K]; what comes back is the score, as in the backend."""
        batch = torch.from_numpy(pixels).to(self._device)
        upstream, seconds = None, []
        for stage in self._stages:
            start = time.perf_counter()
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                upstream, probabilities, score = stage(batch, upstream)
            score.cpu(), probabilities.cpu()
            seconds.append(time.perf_counter() - start)
        return np.array(seconds)


def backend_times(backend: StageBackend, pixels: Pixels) -> Seconds:
    """The same through the backend, with gather, scatter and copy-back, [K]."""
    slots = backend.admit(pixels)
    seconds = []
    for stage in range(backend.stages):
        start = time.perf_counter()
        backend.collect(backend.launch(stage, slots))
        seconds.append(time.perf_counter() - start)
    backend.release(slots)
    return np.array(seconds)


@dataclass
class StageSamples:
    """Samples of t_k(b), a list of [K] for every bucket."""

    buckets: tuple[int, ...]
    images: Pixels
    run: Callable[[Pixels], Seconds]

    def __post_init__(self) -> None:
        self._samples: dict[int, list[Seconds]] = {bucket: [] for bucket in self.buckets}

    def sample(self) -> None:
        """Run every bucket once more."""
        for bucket, samples in self._samples.items():
            samples.append(self.run(self.images[:bucket]))

    def medians(self) -> Seconds:
        """t_k(b) [K, buckets], medians."""
        return np.stack([np.median(samples, axis=0) for samples in self._samples.values()], axis=1)

    def images_per_second(self, reach: NDArray[np.float64]) -> float:
        """1 / Σ_k reach_k · min_b t_k(b) / b, where reach_k is the share of images that enter stage k."""
        best = (self.medians() / np.array(self.buckets)).min(axis=1)
        return float(1 / (reach * best).sum())

    def document(self) -> list[dict[str, Any]]:
        """For people and JSON: milliseconds by stage and bucket."""
        return [
            {"stage": k + 1, "ms": {str(b): round(1e3 * t, 4) for b, t in zip(self.buckets, row, strict=True)}}
            for k, row in enumerate(self.medians().tolist())
        ]
