"""The torch backend: slabs on the device, gather and scatter by slot.

On a CPU in float32 the stages run token by token (token_major.py); else as the modules that training leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backends.devices import pick_device, pick_dtype
from model.backends.memory import failures
from model.backends.protocol import Slots, StageOutput, bucket_of, buckets_up_to, check_pixels
from model.backends.slots import SlotPool
from model.backends.threads import set_threads
from model.backends.token_major import TokenMajorStages
from model.config import CascadeConfig
from model.served import ServedStage, served_stages
from model.weights import Weights

Run = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(stage, all pixels, rows) → probabilities and score of these rows."""


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
        if self._device.type == "cpu":
            set_threads()
        served = served_stages(weights, temperatures or (1.0,) * self.stages, exit_policy)
        self._pool = SlotPool(capacity)
        self._pixels = torch.zeros(capacity + 1, self.size, self.size, 3, dtype=torch.uint8, device=self._device)
        self._rows = np.zeros(self.buckets[-1], dtype=np.int64)
        self._run: Run
        if self._device.type == "cpu" and self._dtype == torch.float32:
            self._run = TokenMajorStages(cascade, served, slots=capacity + 1, largest=self.buckets[-1])
        else:
            self._run = _Modules(cascade, served, capacity + 1, self._device, self._dtype)

    @failures()
    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, size, size, 3] → slots [n]."""
        check_pixels(pixels, self.size)
        with self._pool.taking(len(pixels)) as slots:
            images = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self._device)
            self._pixels.index_copy_(0, torch.from_numpy(slots).to(self._device), images)
        return slots

    @failures()
    @torch.inference_mode()
    def launch(self, stage: int, slots: Slots) -> _Launched:
        """Start stage `stage` over `slots`, padded to the bucket."""
        bucket = bucket_of(self.buckets, len(slots))
        self._rows[: len(slots)], self._rows[len(slots) : bucket] = slots, self.capacity
        rows = torch.from_numpy(self._rows[:bucket]).to(self._device)
        probabilities, score = self._run(stage, self._pixels, rows)
        return _Launched(len(slots), score, probabilities)

    def collect(self, handle: _Launched) -> StageOutput:
        """Wait for the batch and bring score and probabilities to the host."""
        return StageOutput(
            handle.score[: handle.count].cpu().numpy(), handle.probabilities[: handle.count].cpu().numpy()
        )

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)


class _Modules:
    """The modules themselves, and their features [slots, S, C]."""

    def __init__(
        self,
        cascade: CascadeConfig,
        served: Sequence[ServedStage],
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._device, self._dtype = device, dtype
        self._modules = [module.to(device) for module in served]
        for module in self._modules:
            module.stage.to(dtype)
        self._features = [
            torch.zeros(slots, cascade.tokens(k), stage.width, dtype=dtype, device=device)
            for k, stage in enumerate(cascade.stages[:-1])
        ]

    def __call__(self, stage: int, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        upstream = self._features[stage - 1].index_select(0, rows) if stage else None
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            features, probabilities, score = self._modules[stage](pixels.index_select(0, rows), upstream)
        if stage < len(self._features):
            self._features[stage].index_copy_(0, rows, features.to(self._dtype))
        return probabilities, score
