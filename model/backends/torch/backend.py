"""The torch backend. A GPU works on its own while the host decides; on a CPU the host waits for each batch.

All work is queued on one stream, in order, so one set of device buffers is enough: a batch's indices are written, its
stage runs, its answers are copied back, and only then does the next batch touch them. The device reads and writes host
buffers later than the host queues the copies, so each batch in flight has its own. A stage finds its buffers at the
same addresses every time, so a CUDA graph can replay it.
"""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of, buckets_up_to, check_pixels, device_errors
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.slots import SlotPool
from msmlp.model.backends.torch.devices import CudaDriver, Driver, Event, pick_device, pick_dtype
from msmlp.model.errors import DeviceError
from msmlp.model.nn.served import ServedStage, served_stages
from msmlp.model.weights import Weights

STAGED = 1024
"""The staging buffer holds at least this many images, or twice the largest batch if that is more."""


class StagedBackend:
    """Stages behind buffers that never move."""

    name = "torch"

    def __init__(self, weights: Weights, settings: BackendSettings, driver: Driver | None = None) -> None:
        """Build the folded stages, the slabs and the buffers, on the thread that will run them.

        Without `exits` in the settings, all temperatures are 1 and scores are the largest probabilities. `driver`
        replaces that of the settings' device. OptionError for a device or dtype that is not there.
        """
        if driver is None:
            device = pick_device(settings.device)
            driver = Driver(device) if device.type == "cpu" else CudaDriver(device)
        shape, device = weights.manifest.mixers.shape, driver.device
        dtype = pick_dtype(settings.dtype, device)
        exits = settings.exits or Exits((1.0,) * shape.stages)
        capacity = settings.slots(shape.slot_bytes(dtype.itemsize), driver.free_memory)
        self.device, self.dtype = str(device), str(dtype).removeprefix("torch.")
        self.stages, self.classes, self.image_shape = shape.stages, shape.classes, shape.image
        self.capacity, self.buckets = capacity, buckets_up_to(settings.largest_batch)
        self.in_flight, self._pool = driver.in_flight, SlotPool(capacity)
        largest = self.buckets[-1]
        with device_errors():
            modules = served_stages(weights, exits.temperatures, exits.policy)
            self._modules = [_lowered(module, dtype).to(device) for module in modules]
            # One row more than slots: padding reads and writes there.
            self._pixels = torch.zeros(capacity + 1, *shape.image, dtype=torch.uint8, device=device)
            self._features = [
                torch.zeros(capacity + 1, *each, dtype=dtype, device=device)
                for each in shape.features
                if each is not None
            ]
            self._rows = torch.full((largest,), capacity, dtype=torch.int64, device=device)
            self._answers = torch.zeros(largest, 1 + self.classes, dtype=torch.float32, device=device)
            self._free = [_Batch(driver, largest, self.classes) for _ in range(self.in_flight)]
            self._staging = StagingBuffer(driver, self._pixels, min(capacity, max(STAGED, 2 * largest)))
            self._run = driver.replaying(self._step)

    @device_errors()
    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, *image_shape] → slots [n]; they go to the device with the next batch."""
        check_pixels(pixels, self.image_shape)
        with self._pool.taking(len(pixels)) as slots:
            self._staging.add(pixels, slots)
        return slots

    @device_errors()
    @torch.inference_mode()
    def launch(self, stage: int, slots: Slots) -> "_Batch":
        """Queue stage `stage` over `slots`, padded to the bucket; DeviceError beyond `in_flight` batches."""
        if not self._free:
            raise DeviceError(f"{self.in_flight} batches are in flight already")
        bucket, batch = bucket_of(self.buckets, len(slots)), self._free.pop()
        try:
            batch.count = len(slots)
            rows = batch.rows.numpy()
            rows[: len(slots)], rows[len(slots) : bucket] = slots, self.capacity
            self._staging.flush()
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

    @device_errors()
    def collect(self, handle: "_Batch") -> StageOutput:
        """Wait for that batch alone, not for those launched after it."""
        try:
            handle.done.synchronize()
            answers = handle.answers.numpy()[: handle.count]
            return StageOutput(answers[:, 0].copy(), answers[:, 1:].copy())
        finally:
            self._free.append(handle)

    def release(self, slots: Slots) -> None:
        self._pool.give(slots)


class _Batch:
    """The host's side of a batch in flight, and its handle: rows [largest], answers [largest, 1 + classes]."""

    def __init__(self, driver: Driver, largest: int, classes: int) -> None:
        self.rows = driver.host(largest, dtype=torch.int64)
        self.answers = driver.host(largest, 1 + classes, dtype=torch.float32)
        self.done = driver.event()
        self.count = 0


class StagingBuffer:
    """A ring of `places` images on the host, on their way to the device's slots.

    Requests come one by one while the device works through its queue; the launch of a batch sends everything that has
    come. So the host waits for the device only when images fill the whole ring.

    Images are numbered from the first one ever: place = number modulo places. Those up to `_gone` have left the ring,
    those up to `_sent` are queued on the device, those up to `_added` are in the ring.
    """

    def __init__(self, driver: Driver, slab: Tensor, places: int) -> None:
        """Make the buffers; `slab` [capacity + 1, size, size, 3] is where images go, its last row is for padding."""
        self._driver, self._slab, self._places = driver, slab, places
        self._pixels = driver.host(places, *slab.shape[1:], dtype=torch.uint8)
        self._rows = driver.host(places, dtype=torch.int64)
        # On the device too, so that serving allocates nothing there.
        self._device_pixels = torch.zeros_like(self._pixels, device=driver.device)
        self._device_rows = torch.zeros_like(self._rows, device=driver.device)
        self._latest = np.zeros(len(slab), dtype=np.int64)
        self._gone = self._sent = self._added = 0
        self._marks: deque[tuple[int, Event]] = deque()
        self._spare: list[Event] = []

    def add(self, pixels: NDArray[np.uint8], slots: Slots) -> None:
        """Copy images [n, size, size, 3] for `slots` [n] into the ring; waits while it is full."""
        while len(slots):
            first = self._added % self._places
            count = min(len(slots), self._room_for(len(slots)), self._places - first)
            self._pixels.numpy()[first : first + count] = pixels[:count]
            self._rows.numpy()[first : first + count] = slots[:count]
            self._added += count
            pixels, slots = pixels[count:], slots[count:]

    def flush(self) -> None:
        """Queue everything that was added. After an error it stays in the ring, for the next flush."""
        if self._sent == self._added:
            return
        first, count = self._sent % self._places, self._added - self._sent
        self._send(first, min(first + count, self._places))
        if first + count > self._places:
            self._send(0, first + count - self._places)
        mark = self._spare.pop() if self._spare else self._driver.event()
        mark.record()
        self._marks.append((self._added, mark))
        self._sent = self._added

    def _send(self, first: int, last: int) -> None:
        rows, places = self._rows.numpy()[first:last], np.arange(first, last)
        # A slot may be here twice, freed unused and taken again; equal rows may be copied in any order.
        self._latest[rows] = places
        rows[self._latest[rows] != places] = len(self._slab) - 1
        for here, there in ((self._pixels, self._device_pixels), (self._rows, self._device_rows)):
            there[first:last].copy_(here[first:last], non_blocking=True)
        self._slab.index_copy_(0, self._device_rows[first:last], self._device_pixels[first:last])

    def _room_for(self, images: int) -> int:
        """Free places: enough for `images`, or all."""
        wanted = min(images, self._places)
        while self._places - (self._added - self._gone) < wanted:
            if not self._marks:
                self.flush()
            number, mark = self._marks[0]
            mark.synchronize()
            self._marks.popleft()
            self._spare.append(mark)
            self._gone = number
        return self._places - (self._added - self._gone)


class _Casting(nn.Module):
    """A layer that casts its input to its own dtype."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.to(self.dtype))
        return out


def _lowered(module: ServedStage, dtype: torch.dtype) -> ServedStage:
    """Everything in `dtype` but the head: its norm, pooling and logits decide exits, and cost next to nothing."""
    stage = module.stage
    stage.embed = _Casting(stage.embed, dtype)  # type: ignore[assignment]
    stage.blocks.to(dtype)
    return module
