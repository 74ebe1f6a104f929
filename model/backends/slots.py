"""Which slots are free; shared by the backends."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DeviceError


class SlotPool:
    """`capacity` slots, given out and taken back in batches."""

    def __init__(self, capacity: int) -> None:
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int64)
        self._count = capacity
        self._taken = np.zeros(capacity, dtype=bool)
        self._place = np.zeros(capacity, dtype=np.int64)

    def take(self, count: int) -> NDArray[np.int64]:
        """`count` free slots; DeviceError when there are fewer."""
        if count > self._count:
            raise DeviceError(f"{count} slots wanted, {self._count} of {len(self._taken)} are free")
        self._count -= count
        slots = self._free[self._count : self._count + count].copy()
        self._taken[slots] = True
        return slots

    @contextmanager
    def taking(self, count: int) -> Iterator[NDArray[np.int64]]:
        """`take`, whose slots are given back when what is done with them fails."""
        slots = self.take(count)
        try:
            yield slots
        except BaseException:
            self.give(slots)
            raise

    def give(self, slots: NDArray[np.int64]) -> None:
        """Take slots back; DeviceError when one was not given out."""
        # A slot named twice keeps its last place; sorting to find it would cost more than all the rest here.
        places = np.arange(len(slots))
        self._place[slots] = places
        if not self._taken[slots].all() or (self._place[slots] != places).any():
            raise DeviceError("a slot was released twice")
        self._taken[slots] = False
        self._free[self._count : self._count + len(slots)] = slots
        self._count += len(slots)
