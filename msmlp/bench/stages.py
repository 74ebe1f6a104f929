"""How long a stage takes for a batch: through the backend, and as a plain module on a contiguous batch."""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from msmlp.bench.costs import StageCosts
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.nn.served import served_stages
from msmlp.model.weights import Weights

Pixels = NDArray[np.uint8]
Seconds = NDArray[np.float64]


class PlainStages:
    """The folded stages without slots: contiguous batches in, features kept as tensors."""

    def __init__(self, weights: Weights, backend: StageBackend) -> None:
        # Of int8 graphs only weights and products have 8 bits: the modules run in float32 beside them.
        kind = "float32" if backend.dtype == "int8" else backend.dtype
        self._device, self._dtype = torch.device(backend.device), getattr(torch, kind)
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


class StageSamples:
    """Samples of t_k(b), through the backend and plain, taken one right after the other."""

    def __init__(self, backend: StageBackend, plain: PlainStages, images: Pixels) -> None:
        self._backend, self._plain, self._images = backend, plain, images
        self._samples: dict[int, list[Seconds]] = {bucket: [] for bucket in backend.buckets}

    def sample(self, bucket: int, *, plain_first: bool) -> None:
        """Both once more in this bucket."""
        pixels = self._images[:bucket]
        if plain_first:
            plain = self._plain.times(pixels)
            backend = backend_times(self._backend, pixels)
        else:
            backend = backend_times(self._backend, pixels)
            plain = self._plain.times(pixels)
        self._samples[bucket].append(np.stack([backend, plain]))

    def costs(self) -> tuple[StageCosts, StageCosts]:
        """Medians: through the backend, and plain."""
        medians = np.stack([np.median(samples, axis=0) for samples in self._samples.values()], axis=-1)
        return StageCosts(self._backend.buckets, medians[0]), StageCosts(self._backend.buckets, medians[1])

    def least(self) -> StageCosts:
        """The shortest times through the backend: of few samples they say more than medians."""
        least = np.stack([np.min(samples, axis=0)[0] for samples in self._samples.values()], axis=-1)
        return StageCosts(self._backend.buckets, least)
