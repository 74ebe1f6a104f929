"""A queue of slots: first in, first out, in one array. Pure."""

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import Terms

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


# FROM service/engine/tickets.py:
# Tickets as rows of columns, named by their slots, and what they may become. Pure.

FREE, WAITING, RUNNING, SHADOW = 0, 1, 2, 3
TRANSITIONS = {
    (FREE, WAITING),
    (WAITING, RUNNING),
    (WAITING, FREE),
    (RUNNING, WAITING),
    (RUNNING, FREE),
    (RUNNING, SHADOW),
    (SHADOW, RUNNING),
}


class Tickets:
    """`capacity` slots for tickets of a cascade of `stages`.

    Columns are [capacity]; `thresholds` is [stages, capacity]; `shadow_of` is the exit a shadow's ticket has left at, 0
    for who is no shadow. `timed`, `unwanted` and `shadows` count the tickets that have a deadline, are cancelled but
    aboard a batch, and are shadows: most of the time there are none, and nothing need be looked up.
    """

    def __init__(self, capacity: int, stages: int) -> None:
        self.stages = stages
        self.state = np.zeros(capacity, dtype=np.int8)
        self.request = np.full(capacity, -1, dtype=np.int64)
        self.index = np.zeros(capacity, dtype=np.int64)
        self.thresholds = np.zeros((stages, capacity))
        self.min_exit = np.ones(capacity, dtype=np.int64)
        self.max_exit = np.full(capacity, stages, dtype=np.int64)
        self.deadline = np.full(capacity, np.inf)
        self.since = np.zeros(capacity)
        self.cancelled = np.zeros(capacity, dtype=bool)
        self.shadow_of = np.zeros(capacity, dtype=np.int64)
        self.timed = self.unwanted = self.shadows = 0

    def enter(self, slots: Slots, request: int, terms: Terms, now: float) -> None:
        """Tickets of one request, in the order of its images."""
        self.require(slots, FREE)
        self.move(slots, FREE, WAITING)
        self.request[slots], self.index[slots] = request, np.arange(len(slots))
        self.thresholds[: self.stages - 1, slots] = terms.thresholds[:, None]
        self.min_exit[slots], self.max_exit[slots] = terms.min_exit, terms.max_exit
        self.deadline[slots], self.since[slots] = terms.deadline, now
        self.timed += len(slots) if terms.deadline < np.inf else 0

    def withdraw(self, requests: NDArray[np.int64]) -> None:
        """Nobody waits for those aboard a batch any more."""
        aboard = (self.state == RUNNING) & ~self.cancelled & np.isin(self.request, requests)
        self.cancelled |= aboard
        self.unwanted += int(aboard.sum())

    def become_shadows(self, slots: Slots, exit: int) -> None:
        """Their answers are on their way; as shadows nobody can cancel them and nothing lets them go."""
        self._untime(slots)
        self.request[slots], self.shadow_of[slots] = -1, exit
        self.thresholds[:, slots], self.max_exit[slots] = 1.0, self.stages
        self.shadows += len(slots)

    def end(self, slots: Slots, source: int) -> None:
        """Slots are free, with nothing left of who was in them that could bind the next."""
        self.move(slots, source, FREE)
        self._untime(slots)
        if self.shadows:
            self.shadows -= int((self.shadow_of[slots] > 0).sum())
            self.shadow_of[slots] = 0
        if self.unwanted:
            self.unwanted -= int(self.cancelled[slots].sum())
            self.cancelled[slots] = False

    def require(self, slots: Slots, state: int) -> None:
        """RuntimeError unless all are in that state."""
        if (self.state.take(slots) != state).any():
            raise RuntimeError(f"illegal transition: not all of {slots.tolist()} are in state {state}")

    def move(self, slots: Slots, source: int, target: int) -> None:
        """All of `slots`, which are in state `source`; RuntimeError for a transition that is not in the table."""
        if (source, target) not in TRANSITIONS:
            raise RuntimeError(f"illegal transition {source} → {target}")
        self.state[slots] = target

    def _untime(self, slots: Slots) -> None:
        if self.timed:
            self.timed -= int((self.deadline[slots] < np.inf).sum())
            self.deadline[slots] = np.inf
