"""The devices torch can use: which one, in which number format, and what the staged backend (staged.py) asks of it."""

import os
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from msmlp.model.errors import OptionError
from msmlp.model.platform.memory import free_host_memory

Step = Callable[[int, int], None]
"""Runs a stage in a bucket, between the device's buffers."""


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one; OptionError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise OptionError("device", f"{name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", "cuda is not available here (torch sees no GPU); use auto or cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU; OptionError for one that no stage runs in."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    except KeyError:
        raise OptionError("dtype", f"{name!r} is not one of auto, float32, bfloat16") from None


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take there."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    return free_host_memory()


class Event(Protocol):
    """A mark in the device's queue."""

    def record(self) -> None:
        """Put it after all that is queued now."""

    def synchronize(self) -> None:
        """Wait until the device has passed it."""


class Driver(Protocol):
    """What differs from device to device."""

    device: torch.device
    in_flight: int
    """Batches launched before one is collected."""

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A buffer on the host that the device copies from and to by itself."""

    def event(self) -> Event:
        """A mark that has been passed."""

    def replaying(self, step: Step) -> Step:
        """`step`, which always does the same with the same buffers, made cheap to start again."""


class EagerDriver:
    """A CPU: everything is done when the call returns."""

    device, in_flight = torch.device("cpu"), 1

    def __init__(self) -> None:
        set_threads()

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory like any other."""
        return torch.zeros(*shape, dtype=dtype)

    def event(self) -> Event:
        """Always passed."""
        return _Passed()

    def replaying(self, step: Step) -> Step:
        """Nothing is cheaper than the call."""
        return step


class _Passed:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def driver_of(device: torch.device) -> Driver:
    """The driver of a GPU or of a CPU."""
    if device.type == "cpu":
        return EagerDriver()
    from msmlp.model.backends.torch.cuda import CudaDriver

    return CudaDriver(device)


@cache  # a second backend in the same process would take one more core away
def set_threads() -> None:
    """Tell torch, on the thread that will compute; OMP_NUM_THREADS outranks it."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for(torch.get_num_threads()))


def threads_for(cores: int) -> int:
    """All cores but one, which is left to the event loop and the decoders.

    Every operation ends when the last of its threads has done its part. One that has to share its core makes all others
    wait, turning microseconds into the milliseconds after which the system gives it the core back.
    """
    return max(1, cores - 1)
