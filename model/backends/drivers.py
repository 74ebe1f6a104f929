"""What the staged backend (staged.py) asks of a device, and a CPU as such a device."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from msmlp.model.backends.threads import set_threads

Step = Callable[[int, int], None]
"""Runs a stage in a bucket, between the device's buffers."""


class Event(Protocol):
    """A mark in the device's queue."""

    def record(self) -> None:
        """Put it after all that is queued now."""

    def synchronize(self) -> None:
        """Wait until the device has passed it."""


class Driver(Protocol):
    """What differs from device to device."""

    device: torch.device

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A buffer on the host that the device copies from and to by itself."""

    def event(self) -> Event:
        """A mark that has been passed."""

    def replaying(self, step: Step) -> Step:
        """`step`, which always does the same with the same buffers, made cheap to start again."""


class EagerDriver:
    """A CPU: everything is done when the call returns."""

    device = torch.device("cpu")

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
