"""The torch backend: slabs on the device, gather and scatter by slot."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backends.devices import pick_device, pick_dtype
from model.backends.protocol import Slots, StageOutput, bucket_of, buckets_up_to, check_pixels
from model.backends.slots import SlotPool
from model.served import served_stages
from model.weights import Weights


@dataclass
class _Launched:
    count: int
    score: Tensor
    probabilities: Tensor


class TorchBackend:
    """Stages on a CPU or a GPU through torch. One row more than the capacity: padding reads and writes there."""

    name, in_flight = "torch", 1

    def __init__(
        self,
        weights: Weights,
        *,
        temperatures: tuple[float, ...] | None = None,
        exit_policy: str = "max-probability",
        device: str = "auto",
        dtype: str = "auto",
        capacity: int = 1024,
        max_batch: int = 64,
    ) -> None:
        """Build the folded stages and the slabs.

        Args:
            weights: a loaded weights folder.
            temperatures: one an exit; all 1 without.
            exit_policy: what the score is (model/scores.py).
            device: auto, cpu or cuda.
            dtype: auto (bf16 on a GPU, fp32 on a CPU), float32 or bfloat16.
            capacity: slots.
            max_batch: the largest batch.
        """
        cascade = weights.manifest.cascade
        self._device = pick_device(device)
        self._dtype = pick_dtype(dtype, self._device)
        self.device, self.dtype = str(self._device), str(self._dtype).removeprefix("torch.")
        self.stages, self.classes, self.size = len(cascade.stages), cascade.classes, cascade.image_size
        self.capacity, self.buckets = capacity, buckets_up_to(min(max_batch, capacity))
        modules = served_stages(weights, temperatures or (1.0,) * self.stages, exit_policy)
        self._modules = [m.to(self._device) for m in modules]
        for module in self._modules:
            module.stage.to(self._dtype)
        self._pool = SlotPool(capacity)
        self._pixels = torch.zeros(capacity + 1, self.size, self.size, 3, dtype=torch.uint8, device=self._device)
        self._features = [
            torch.zeros(capacity + 1, cascade.tokens(k), s.width, dtype=self._dtype, device=self._device)
            for k, s in enumerate(cascade.stages[:-1])
        ]

    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, size, size, 3] → slots [n]."""
        check_pixels(pixels, self.size)
        with self._pool.taking(len(pixels)) as slots:
            images = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self._device)
            self._pixels.index_copy_(0, torch.from_numpy(slots).to(self._device), images)
        return slots

    @torch.inference_mode()
    def launch(self, stage: int, slots: Slots) -> _Launched:
        """Start stage `stage` over `slots`, padded to the bucket."""
        bucket = bucket_of(self.buckets, len(slots))
        padded = np.full(bucket, self.capacity, dtype=np.int64)
        padded[: len(slots)] = slots
        rows = torch.from_numpy(padded).to(self._device)
        upstream = self._features[stage - 1].index_select(0, rows) if stage else None
        module = self._modules[stage]
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            features, probabilities, score = module(self._pixels.index_select(0, rows), upstream)
        if stage + 1 < self.stages:
            self._features[stage].index_copy_(0, rows, features.to(self._dtype))
        return _Launched(len(slots), score, probabilities)

    def collect(self, handle: _Launched) -> StageOutput:
        """Wait for the batch and bring score and probabilities to the host."""
        return StageOutput(
            handle.score[: handle.count].cpu().numpy(), handle.probabilities[: handle.count].cpu().numpy()
        )

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)
