"""The torch backend. A GPU works on its own while the host decides; on a CPU the host waits for each batch.

All work is queued on one stream, in order, so one set of device buffers is enough: a batch's indices are written, its
stage runs, its answers are copied back, and only then does the next batch touch them. The device reads and writes the
host's buffers later than the host asks it to, so each batch in flight has its own. A stage finds its buffers at the
same addresses every time: a CUDA graph can replay it (cuda.py).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of, buckets_up_to, check_pixels
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.slots import SlotPool
from msmlp.model.backends.torch.devices import Driver, driver_of, free_memory, pick_device, pick_dtype
from msmlp.model.backends.torch.staging import Arrivals
from msmlp.model.errors import DeviceError
from msmlp.model.nn.served import ServedStage, served_stages
from msmlp.model.platform.memory import failures, slot_bytes
from msmlp.model.weights import Weights

ARRIVING = 1024
"""Images on their way to the device before the host waits, at least: twice the largest batch where that is more."""


class _Batch:
    """The host's side of a batch in flight, and its handle: rows [largest], answers [largest, 1 + classes]."""

    def __init__(self, driver: Driver, largest: int, classes: int) -> None:
        self.rows = driver.host(largest, dtype=torch.int64)
        self.answers = driver.host(largest, 1 + classes, dtype=torch.float32)
        self.done = driver.event()
        self.count = 0


class StagedBackend:
    """Stages behind buffers that never move."""

    name = "torch"

    def __init__(self, weights: Weights, settings: BackendSettings, driver: Driver | None = None) -> None:
        """Build the folded stages, the slabs and the buffers, on the thread that will run them.

        Args:
            weights: a loaded weights folder.
            settings: without `exits` all temperatures are 1, and scores are the largest probabilities.
            driver: the device, instead of the one that the settings name.

        Raises:
            OptionError: a device or dtype that is not there.
            DeviceError: the device failed or has no room.
        """
        driver = driver or driver_of(pick_device(settings.device))
        cascade, device = weights.manifest.cascade, driver.device
        dtype = pick_dtype(settings.dtype, device)
        exits = settings.exits or Exits((1.0,) * len(cascade.stages))
        capacity = settings.slots(slot_bytes(cascade, dtype.itemsize), lambda: free_memory(device))
        self.device, self.dtype = str(device), str(dtype).removeprefix("torch.")
        self.stages, self.classes, self.size = len(cascade.stages), cascade.classes, cascade.image_size
        self.capacity, self.buckets = capacity, buckets_up_to(settings.largest_batch)
        self.in_flight, self._pool = driver.in_flight, SlotPool(capacity)
        largest = self.buckets[-1]
        with failures():
            modules = served_stages(weights, exits.temperatures, exits.policy)
            self._modules = [_lowered(module, dtype).to(device) for module in modules]
            # One row more than slots: padding reads and writes there.
            self._pixels = torch.zeros(capacity + 1, self.size, self.size, 3, dtype=torch.uint8, device=device)
            self._features = [
                torch.zeros(capacity + 1, cascade.tokens(k), stage.width, dtype=dtype, device=device)
                for k, stage in enumerate(cascade.stages[:-1])
            ]
            self._rows = torch.full((largest,), capacity, dtype=torch.int64, device=device)
            self._answers = torch.zeros(largest, 1 + self.classes, dtype=torch.float32, device=device)
            self._free = [_Batch(driver, largest, self.classes) for _ in range(self.in_flight)]
            self._arrivals = Arrivals(driver, self._pixels, min(capacity, max(ARRIVING, 2 * largest)))
            self._run = driver.replaying(self._step)

    @failures()
    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, size, size, 3] → slots [n]; they go to the device with the next batch."""
        check_pixels(pixels, self.size)
        with self._pool.taking(len(pixels)) as slots:
            self._arrivals.add(pixels, slots)
        return slots

    @failures()
    @torch.inference_mode()
    def launch(self, stage: int, slots: Slots) -> _Batch:
        """Queue stage `stage` over `slots`, padded to the bucket; DeviceError beyond `in_flight` batches."""
        if not self._free:
            raise DeviceError(f"{self.in_flight} batches are in flight already")
        bucket, batch = bucket_of(self.buckets, len(slots)), self._free.pop()
        try:
            batch.count = len(slots)
            rows = batch.rows.numpy()
            rows[: len(slots)], rows[len(slots) : bucket] = slots, self.capacity
            self._arrivals.flush()
            self._rows[:bucket].copy_(batch.rows[:bucket], non_blocking=True)
            self._run(stage, bucket)
            batch.answers[:bucket].copy_(self._answers[:bucket], non_blocking=True)
            batch.done.record()
        except BaseException:
            self._free.append(batch)
            raise
        return batch

    def _step(self, stage: int, bucket: int) -> None:
        rows = self._rows[:bucket]
        upstream = self._features[stage - 1].index_select(0, rows) if stage else None
        features, probabilities, score = self._modules[stage](self._pixels.index_select(0, rows), upstream)
        if stage + 1 < self.stages:
            self._features[stage].index_copy_(0, rows, features)
        torch.cat([score[:, None], probabilities], dim=1, out=self._answers[:bucket])

    @failures()
    def collect(self, handle: _Batch) -> StageOutput:
        """Wait for that batch alone, not for what was launched after it."""
        try:
            handle.done.synchronize()
            answers = handle.answers.numpy()[: handle.count]
            return StageOutput(answers[:, 0].copy(), answers[:, 1:].copy())
        finally:
            self._free.append(handle)

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)


class _Casting(nn.Module):
    """A layer in a dtype of its own."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.to(self.dtype))
        return out


def _lowered(module: ServedStage, dtype: torch.dtype) -> ServedStage:
    """All in `dtype` but the head: its norm, pooling and logits decide exits, and cost next to nothing."""
    stage = module.stage
    stage.embed = _Casting(stage.embed, dtype)  # type: ignore[assignment]
    stage.blocks.to(dtype)
    stage.norm = _Casting(stage.norm, torch.float32)  # type: ignore[assignment]
    return module
