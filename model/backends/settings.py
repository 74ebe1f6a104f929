"""The settings of a backend: one object from a command's options to the backend itself."""

from collections.abc import Callable
from dataclasses import dataclass

from msmlp.model.backends.slots import slots_that_fit


@dataclass(frozen=True)
class Exits:
    """What turns logits into answers: one temperature per exit, and the exit policy (model/exits/policies.py)."""

    temperatures: tuple[float, ...]
    policy: str = "max-probability"


@dataclass(frozen=True)
class BackendSettings:
    """What a backend is built with; `select_backend` or the backend itself resolves `auto`.

    Attributes:
        device: auto (a GPU if there is one), cpu or cuda.
        dtype: auto (on a GPU bfloat16 with torch, float16 with ONNX Runtime if there are such graphs; on a CPU
            float32), float32, bfloat16 (torch), float16 or int8 (ONNX Runtime).
        provider: ONNX Runtime's on a GPU: auto (cuda), cuda or tensorrt.
        capacity: images in flight; None takes as many as fit into the device's free memory.
        reserve: slots beyond these.
        max_batch: the largest batch; the capacity limits it too.
        exits: torch's temperatures and exit policy; None takes the calibration's, which ONNX graphs contain.
    """

    device: str = "auto"
    dtype: str = "auto"
    provider: str = "auto"
    capacity: int | None = None
    reserve: int = 0
    max_batch: int = 64
    exits: Exits | None = None

    @property
    def largest_batch(self) -> int:
        return min(self.max_batch, self.capacity or self.max_batch)

    def slots(self, slot_bytes: int, free: Callable[[], int]) -> int:
        """The number of slots on a device with `free()` bytes; DeviceError if these are too few."""
        if self.capacity is not None:
            return self.capacity + self.reserve
        return slots_that_fit(slot_bytes, free(), max_batch=self.max_batch, reserve=self.reserve)
