"""The settings of a backend: one object from a command's options to the backend itself."""

from collections.abc import Callable
from dataclasses import dataclass

from msmlp.model.errors import DeviceError
from msmlp.model.text import percent

MEMORY_SHARE = 0.25
"""The share for slots of the memory that is free before the weights are loaded; weights and batches need the rest."""

MAX_CAPACITY = 16_384
"""Images in flight unless `capacity` is set. More would only wait longer in the device's queue."""

MIB = 2**20


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
        threads: that compute with ONNX Runtime on a CPU; None takes one per core.
        share: how many backends like this one, each in a process of its own, divide the device.
        exits: torch's temperatures and exit policy; None takes the calibration's, which ONNX graphs contain.
    """

    device: str = "auto"
    dtype: str = "auto"
    provider: str = "auto"
    capacity: int | None = None
    reserve: int = 0
    max_batch: int = 64
    threads: int | None = None
    share: int = 1
    exits: Exits | None = None

    @property
    def alone(self) -> bool:
        """Whether no other backend like this one shares the machine."""
        return self.share == 1

    @property
    def largest_batch(self) -> int:
        return min(self.max_batch, self.capacity or self.max_batch)

    def slots(self, slot_bytes: int, free: Callable[[], int]) -> int:
        """The number of slots of `slot_bytes` on a device with `free()` bytes: what the settings say, or as many as fit
        into MEMORY_SHARE, at most MAX_CAPACITY and the reserve.

        DeviceError if these are too few for the largest batch and the reserve.
        """
        if self.capacity is not None:
            return self.capacity + self.reserve
        # One row more than slots: padding reads and writes there.
        available, least = free() // self.share, self.max_batch + self.reserve
        fit = int(MEMORY_SHARE * available) // slot_bytes - 1
        if fit < least:
            raise DeviceError(
                f"{least} slots need {(least + 1) * slot_bytes / MIB:.1f} MiB, and slots may take "
                f"{percent(MEMORY_SHARE, 0)} of the {available / MIB:.1f} MiB free here; "
                "lower --max-batch or set --capacity"
            )
        return min(fit, max(self.max_batch, MAX_CAPACITY // self.share) + self.reserve)
