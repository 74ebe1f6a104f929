"""The torch backend of a CPU, in float32: the stages run token by token (token_major.py) over slabs in memory.

For other dtypes and for a GPU see staged.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msmlp.model.backends.memory import failures
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of, buckets_up_to, check_pixels
from msmlp.model.backends.slots import SlotPool
from msmlp.model.backends.threads import set_threads
from msmlp.model.backends.token_major import TokenMajorStages
from msmlp.model.nn.served import served_stages
from msmlp.model.weights import Weights


@dataclass
class _Launched:
    count: int
    score: Tensor
    probabilities: Tensor


class TorchBackend:
    """Stages on a CPU through torch. One row more than the capacity: padding reads and writes there."""

    name, device, dtype, in_flight = "torch", "cpu", "float32", 1

    def __init__(
        self,
        weights: Weights,
        *,
        temperatures: tuple[float, ...] | None = None,
        exit_policy: str = "max-probability",
        capacity: int = 1024,
        max_batch: int = 64,
    ) -> None:
        """Build the folded stages and the slabs.

        Args:
            weights: a loaded weights folder.
            temperatures: one an exit; all 1 without.
            exit_policy: what an exit's score is (model/scores.py).
            capacity: slots.
            max_batch: the largest batch.
        """
        cascade = weights.manifest.cascade
        self.stages, self.classes, self.size = len(cascade.stages), cascade.classes, cascade.image_size
        self.capacity, self.buckets = capacity, buckets_up_to(min(max_batch, capacity))
        set_threads()
        served = served_stages(weights, temperatures or (1.0,) * self.stages, exit_policy)
        self._pool = SlotPool(capacity)
        self._host_pixels = np.zeros((capacity + 1, self.size, self.size, 3), dtype=np.uint8)
        self._pixels = torch.from_numpy(self._host_pixels)  # the same memory: numpy writes it three times as fast
        self._rows = np.zeros(self.buckets[-1], dtype=np.int64)
        self._run = TokenMajorStages(cascade, served, slots=capacity + 1, largest=self.buckets[-1])

    @failures()
    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, size, size, 3] → slots [n]."""
        check_pixels(pixels, self.size)
        with self._pool.taking(len(pixels)) as slots:
            self._host_pixels[slots] = pixels
        return slots

    @failures()
    @torch.inference_mode()
    def launch(self, stage: int, slots: Slots) -> _Launched:
        """Start stage `stage` over `slots`, padded to the bucket."""
        bucket = bucket_of(self.buckets, len(slots))
        self._rows[: len(slots)], self._rows[len(slots) : bucket] = slots, self.capacity
        rows = torch.from_numpy(self._rows[:bucket])
        probabilities, score = self._run(stage, self._pixels, rows)
        return _Launched(len(slots), score, probabilities)

    def collect(self, handle: _Launched) -> StageOutput:
        """The batch's answers: on a CPU there was nothing to wait for."""
        return StageOutput(handle.score[: handle.count].numpy(), handle.probabilities[: handle.count].numpy())

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)
