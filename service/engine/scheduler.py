"""Which stage runs next, over which tickets. Pure: no clock, no I/O, no device; `now` is an argument.

Rules
1. A ticket is a row of columns, named by its slot, and is FREE, WAITING (for a stage) or RUNNING (in a batch).
2. Tickets wait for a stage together, whichever request or batch they came from; a batch takes the oldest first.
3. Work-conserving: if anything waits, there is a batch.
4. Full batches first, the deepest stage of those; else the earliest stage with anything waiting, so that survivors
   gather company. No stage with waiting tickets is passed over more than PATIENCE times in a row (K - 1 times, where
   that is more: with everything waiting, round and round is the best there is).
5. Where a ticket goes after a stage is `model.exits.decide` and nothing else.
6. A cancelled ticket leaves at once when WAITING and after its batch when RUNNING.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.exits import Reason, decide

Slots = NDArray[np.int64]

FREE, WAITING, RUNNING = 0, 1, 2
TRANSITIONS = {(FREE, WAITING), (WAITING, RUNNING), (RUNNING, WAITING), (RUNNING, FREE), (WAITING, FREE)}
PATIENCE = 3


@dataclass(frozen=True)
class Batch:
    """Run stage `stage` (0-based) over `slots`; `waited` is how long each waited for it, in seconds."""

    stage: int
    slots: Slots
    waited: NDArray[np.float64]


@dataclass(frozen=True)
class Settled:
    """What became of a batch: tickets that left with an answer (positions in the batch), and cancelled ones (slots)."""

    left: NDArray[np.int64]
    reasons: NDArray[np.int8]
    cancelled: Slots


class Scheduler:
    """Tickets in `capacity` slots through `stages` stages in batches of at most `max_batch`."""

    def __init__(self, capacity: int, stages: int, max_batch: int) -> None:
        self.stages, self.max_batch = stages, max_batch
        self.request = np.full(capacity, -1, dtype=np.int64)
        self.index = np.zeros(capacity, dtype=np.int64)
        self._state = np.zeros(capacity, dtype=np.int8)
        self._stage = np.zeros(capacity, dtype=np.int64)
        self._thresholds = np.zeros((capacity, stages))
        self._min_exit = np.ones(capacity, dtype=np.int64)
        self._max_exit = np.full(capacity, stages, dtype=np.int64)
        self._order = np.zeros(capacity, dtype=np.int64)
        self._since = np.zeros(capacity)
        self._cancelled = np.zeros(capacity, dtype=bool)
        self._passed_over = np.zeros(stages, dtype=np.int64)
        self._arrivals = 0

    def add(
        self, slots: Slots, request: int, thresholds: NDArray[np.float64], min_exit: int, max_exit: int, now: float
    ) -> None:
        """Tickets of one request enter and wait for the first stage; `thresholds` [K - 1]."""
        self._move(slots, FREE, WAITING)
        self.request[slots] = request
        self.index[slots] = np.arange(len(slots))
        self._stage[slots] = 0
        self._thresholds[slots, : self.stages - 1] = thresholds
        self._min_exit[slots], self._max_exit[slots] = min_exit, max_exit
        self._order[slots] = self._arrivals + np.arange(len(slots))
        self._arrivals += len(slots)
        self._since[slots] = now
        self._cancelled[slots] = False

    def next_batch(self, now: float) -> Batch | None:
        """The batch to run now, marked as running; None when nothing waits."""
        waiting = self.waiting()
        if not waiting.any():
            return None
        stage = self._choose(waiting)
        slots = np.flatnonzero((self._state == WAITING) & (self._stage == stage))
        if len(slots) > self.max_batch:
            oldest = np.argpartition(self._order[slots], self.max_batch - 1)[: self.max_batch]
            slots = slots[oldest]
        slots = slots[np.argsort(self._order[slots])]
        self._passed_over += 1
        self._passed_over[waiting == 0] = 0
        self._passed_over[stage] = 0
        self._move(slots, WAITING, RUNNING)
        return Batch(stage, slots, now - self._since[slots])

    def settle(self, batch: Batch, scores: NDArray[np.float32], now: float) -> Settled:
        """A batch's scores are known: survivors wait for the next stage, the rest is free (release its slots)."""
        slots = batch.slots
        reasons = decide(
            batch.stage + 1,
            self.stages,
            scores,
            self._thresholds[slots, batch.stage],
            self._min_exit[slots],
            self._max_exit[slots],
        )
        cancelled = self._cancelled[slots]
        left = ~cancelled & (reasons != Reason.GOES_ON)
        survivors = slots[~cancelled & ~left]
        self._move(survivors, RUNNING, WAITING)
        self._stage[survivors] = batch.stage + 1
        self._since[survivors] = now
        self._move(slots[cancelled | left], RUNNING, FREE)
        return Settled(np.flatnonzero(left), reasons[left], slots[cancelled])

    def cancel(self, request: int) -> Slots:
        """Nobody waits for `request`: its waiting tickets are free at once (release these slots)."""
        mine = (self.request == request) & (self._state != FREE)
        self._cancelled[mine] = True
        waiting = np.flatnonzero(mine & (self._state == WAITING))
        self._move(waiting, WAITING, FREE)
        return waiting

    def abandon(self, batch: Batch) -> tuple[NDArray[np.int64], Slots]:
        """The batch failed: every ticket of its requests leaves unanswered → those requests, slots to release.

        Those in another batch leave as cancelled ones do, after it.
        """
        requests = np.unique(self.request[batch.slots])
        self._move(batch.slots, RUNNING, FREE)
        theirs = np.isin(self.request, requests)
        self._cancelled[theirs] = True
        waiting = np.flatnonzero(theirs & (self._state == WAITING))
        self._move(waiting, WAITING, FREE)
        return requests, np.concatenate([batch.slots, waiting])

    def waiting(self) -> NDArray[np.int64]:
        """How many tickets wait for each stage, [K]."""
        return np.bincount(self._stage[self._state == WAITING], minlength=self.stages)

    def oldest_since(self) -> NDArray[np.float64]:
        """Since when the longest-waiting ticket of each stage waits, [K]; inf where none does."""
        oldest = np.full(self.stages, np.inf)
        rows = self._state == WAITING
        np.minimum.at(oldest, self._stage[rows], self._since[rows])
        return oldest

    def _choose(self, waiting: NDArray[np.int64]) -> int:
        stages = np.flatnonzero(waiting)
        stages = stages[np.argsort(-self._passed_over[stages], kind="stable")]
        # Run one after the other from now on, each would have been passed over so often by then.
        if (self._passed_over[stages] + np.arange(len(stages)) >= max(PATIENCE, self.stages - 1)).any():
            return int(stages[0])
        full = np.flatnonzero(waiting >= self.max_batch)
        return int(full[-1]) if len(full) else int(stages.min())

    def _move(self, slots: Slots, source: int, target: int) -> None:
        if (source, target) not in TRANSITIONS or (self._state[slots] != source).any():
            raise RuntimeError(f"illegal transition {source} → {target}")
        self._state[slots] = target
