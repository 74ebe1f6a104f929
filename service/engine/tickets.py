"""Tickets as rows of columns, named by their slots, and the queues they wait in. Pure."""

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import outlook
from msmlp.service.engine.messages import ExitParameters

Slots = NDArray[np.int64]

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


class Fifo:
    """A queue of at most `capacity` slots, each once, in one array."""

    def __init__(self, capacity: int) -> None:
        # Twice the room, so that the rest moves to the front only once per `capacity` slots.
        self._array = np.zeros(2 * capacity, dtype=np.int64)
        self._head = self._tail = 0

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def slots(self) -> Slots:
        """All slots, the oldest first; a view that is valid until the next change."""
        return self._array[self._head : self._tail]

    @property
    def first(self) -> int:
        """The oldest slot; the queue must not be empty."""
        return self._array.item(self._head)

    def push(self, slots: Slots) -> None:
        count = len(slots)
        if self._tail + count > len(self._array):
            waiting = self.slots.copy()
            self._head, self._tail = 0, len(waiting)
            self._array[: self._tail] = waiting
        self._array[self._tail : self._tail + count] = slots
        self._tail += count

    def pop(self, count: int) -> Slots:
        slots = self._array[self._head : self._head + count].copy()
        self._head += count
        return slots

    def keep(self, staying: NDArray[np.bool_]) -> Slots:
        """Remove the slots that do not stay → those; `staying` goes with `slots`."""
        slots = self.slots
        left, rest = slots[~staying], slots[staying]
        self._array[self._head : self._head + len(rest)] = rest
        self._tail = self._head + len(rest)
        return left


class Tickets:
    """`capacity` slots for tickets of a cascade of `stages`.

    Columns are [capacity]; `least` and `others` are a list of them by stage, with what the exit rule needs; `min_exit`
    has meaning next to a deadline; `shadow_of` is the exit at which a shadow's ticket left, 0 for other tickets.
    `timed`, `unwanted` and `shadows` count the tickets that have a deadline, were cancelled while running, and are
    shadows: mostly there are none, and the columns need not be read.
    """

    def __init__(self, capacity: int, stages: int) -> None:
        self.stages = stages
        self.state = np.zeros(capacity, dtype=np.int8)
        self.request = np.full(capacity, -1, dtype=np.int64)
        self.index = np.zeros(capacity, dtype=np.int64)
        self.least = [np.full(capacity, np.inf) for _ in range(stages)]
        self.others = [np.zeros(capacity, dtype=np.int8) for _ in range(stages)]
        self.min_exit = np.ones(capacity, dtype=np.int64)
        self.deadline = np.full(capacity, np.inf)
        self.since = np.zeros(capacity)
        self.cancelled = np.zeros(capacity, dtype=bool)
        self.shadow_of = np.zeros(capacity, dtype=np.int64)
        self.timed = self.unwanted = self.shadows = 0

    def enter(self, slots: Slots, request: int, parameters: ExitParameters, now: float) -> None:
        """Tickets of one request begin to wait, in the order of its images."""
        self.require(slots, FREE)
        one = len(slots) == 1
        at: Slots | int = slots.item() if one else slots  # numpy sets a single number several times faster
        self.state[at], self.since[at] = WAITING, now
        self.request[at], self.index[at] = request, 0 if one else np.arange(len(slots))
        least, others = outlook(self.stages, parameters.thresholds, parameters.min_exit, parameters.max_exit)
        for stage in range(self.stages):
            self.least[stage][at], self.others[stage][at] = least[stage], others[stage]
        if parameters.deadline < np.inf:
            self.deadline[at], self.min_exit[at] = parameters.deadline, parameters.min_exit
            self.timed += len(slots)

    def withdraw(self, requests: NDArray[np.int64]) -> None:
        """Mark the running tickets of these requests as cancelled."""
        running = (self.state == RUNNING) & ~self.cancelled & np.isin(self.request, requests)
        self.cancelled |= running
        self.unwanted += int(running.sum())

    def become_shadows(self, slots: Slots, exit: int) -> None:
        """Tickets that were answered become shadows: they belong to no request, and reach the last exit."""
        self._untime(slots)
        self.request[slots], self.shadow_of[slots] = -1, exit
        self.shadows += len(slots)

    def end(self, slots: Slots, source: int) -> None:
        """Free slots, and reset what would affect their next tickets."""
        self.move(slots, source, FREE)
        self._untime(slots)
        if self.shadows:
            self.shadows -= int((self.shadow_of[slots] > 0).sum())
            self.shadow_of[slots] = 0
        if self.unwanted:
            self.unwanted -= int(self.cancelled[slots].sum())
            self.cancelled[slots] = False

    def require(self, slots: Slots, state: int) -> None:
        """Raise RuntimeError unless all are in that state."""
        if self.state.take(slots).tobytes().count(state) != len(slots):  # comparing arrays takes several times as long
            raise RuntimeError(f"illegal transition: not all of {slots.tolist()} are in state {state}")

    def move(self, slots: Slots, source: int, target: int) -> None:
        """Change the state of `slots`, which are in `source`; RuntimeError for a transition not in the table."""
        if (source, target) not in TRANSITIONS:
            raise RuntimeError(f"illegal transition {source} → {target}")
        self.state[slots] = target

    def _untime(self, slots: Slots) -> None:
        if self.timed:
            self.timed -= int((self.deadline[slots] < np.inf).sum())
            self.deadline[slots] = np.inf
