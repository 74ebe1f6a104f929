"""What both ONNX Runtime backends have: slots, images in the host's memory, answers that are there after `launch`."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import Slots, StageOutput, buckets_up_to, check_pixels
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.slots import SlotPool
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.platform.memory import slot_bytes


class OnnxSlots:
    """One row more than the capacity: padding reads and writes there."""

    name, in_flight = "onnx", 1

    def __init__(self, cascade: CascadeConfig, settings: BackendSettings, free: Callable[[], int]) -> None:
        """As many slots as the settings say, or as fit into `free()` bytes."""
        self.dtype = "float32" if settings.dtype == "auto" else settings.dtype
        capacity = settings.slots(slot_bytes(cascade, np.dtype(features_dtype(self.dtype)).itemsize), free)
        self.stages, self.classes, self.size = len(cascade.stages), cascade.classes, cascade.image_size
        self.capacity, self.buckets = capacity, buckets_up_to(settings.largest_batch)
        self._pool = SlotPool(capacity)
        self._pixels = np.zeros((capacity + 1, self.size, self.size, 3), dtype=np.uint8)

    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, size, size, 3] → slots [n]."""
        check_pixels(pixels, self.size)
        with self._pool.taking(len(pixels)) as slots:
            self._pixels[slots] = pixels
        return slots

    def collect(self, handle: StageOutput) -> StageOutput:
        """The batch's answers."""
        return handle

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)


def features_dtype(dtype: str) -> type[np.floating]:
    """What features are kept in: int8 graphs have 8 bits only inside."""
    return np.float16 if dtype == "float16" else np.float32
