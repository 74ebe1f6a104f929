"""Slots: which are free."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DeviceError


class SlotPool:
    """`capacity` slots, taken and given back in batches."""

    def __init__(self, capacity: int) -> None:
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int64)
        self._count = capacity
        self._taken = np.zeros(capacity, dtype=bool)
        self._place = np.zeros(capacity, dtype=np.int64)
        self._places = np.arange(capacity)

    def take(self, count: int) -> NDArray[np.int64]:
        if count > self._count:
            raise DeviceError(f"{count} slots wanted, {self._count} of {len(self._taken)} are free")
        self._count -= count
        slots = self._free[self._count : self._count + count].copy()
        self._taken[slots] = True
        return slots

    @contextmanager
    def taking(self, count: int) -> Iterator[NDArray[np.int64]]:
        """`take`; an error in the block gives the slots back."""
        slots = self.take(count)
        try:
            yield slots
        except BaseException:
            self.give(slots)
            raise

    def give(self, slots: NDArray[np.int64]) -> None:
        # A slot named twice keeps its last place; sorting to find it would cost more than everything else here.
        count = len(slots)
        places = self._places[:count]
        self._place[slots] = places
        # On a few items `count_nonzero` takes a tenth of what `any` and `all` take.
        if np.count_nonzero(self._taken[slots]) < count or np.count_nonzero(self._place[slots] != places):
            raise DeviceError("a slot was released twice")
        self._taken[slots] = False
        self._free[self._count : self._count + count] = slots
        self._count += count
