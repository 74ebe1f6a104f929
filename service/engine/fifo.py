"""A queue of slots: first in, first out, in one array. Pure."""

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]


class Fifo:
    """At most `capacity` slots, each once."""

    def __init__(self, capacity: int) -> None:
        # Twice the room, so that what is left moves to the front only once in `capacity` slots.
        self._array = np.zeros(2 * capacity, dtype=np.int64)
        self._head = self._tail = 0

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def slots(self) -> Slots:
        """All that wait, the oldest first; a view that the next change makes meaningless."""
        return self._array[self._head : self._tail]

    @property
    def first(self) -> int:
        """The oldest; there must be one."""
        return self._array.item(self._head)

    def push(self, slots: Slots) -> None:
        """To the end, in their order."""
        count = len(slots)
        if self._tail + count > len(self._array):
            waiting = self.slots.copy()
            self._head, self._tail = 0, len(waiting)
            self._array[: self._tail] = waiting
        self._array[self._tail : self._tail + count] = slots
        self._tail += count

    def pop(self, count: int) -> Slots:
        """The `count` oldest leave."""
        slots = self._array[self._head : self._head + count].copy()
        self._head += count
        return slots

    def keep(self, staying: NDArray[np.bool_]) -> Slots:
        """Those that do not stay leave, wherever they stand → who left; `staying` goes with `slots`."""
        slots = self.slots
        left, rest = slots[~staying], slots[staying]
        self._array[self._head : self._head + len(rest)] = rest
        self._tail = self._head + len(rest)
        return left
