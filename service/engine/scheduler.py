"""Which stage runs next, over which tickets. Pure: no clock, no I/O, no device; `now` is an argument.

Rules
1. A ticket is a row of columns, named by its slot; it is FREE, WAITING (for a stage), RUNNING (in a batch) or a SHADOW.
2. Tickets wait for a stage together, whichever request or batch they came from; a batch takes the oldest first.
3. Work-conserving: if anything waits, there is a batch.
4. Full batches first, the deepest stage of those; else the earliest stage with anything waiting, so that survivors
   gather company. No stage with waiting tickets is passed over more than PATIENCE times in a row (K - 1 times, where
   that is more: with everything waiting, round and round is the best there is).
5. Where a ticket goes after a stage is `model.exits.decide` and nothing else.
6. A cancelled ticket leaves at once when WAITING and after its batch when RUNNING.
7. A ticket with a deadline does not wait for a batch, its own or the one that goes first, whose predicted end passes
   it: it leaves with the exit it has reached (`overdue`). One that has reached none leaves when the deadline has
   passed. `min_exit` outranks both.
8. Of the tickets that leave confident, every `shadow_every`-th is answered and kept as a SHADOW, which runs on to the
   last stage when nobody waits, to see whether the answer would have stayed. At most `reserve` at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.exits import Reason, decide
from service.engine.messages import Terms
from service.engine.times import StageTimes

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
PATIENCE = 3


@dataclass(frozen=True)
class Batch:
    """Run stage `stage` (0-based) over `slots`; `waited` is how long each waited for it, in seconds."""

    stage: int
    slots: Slots
    waited: NDArray[np.float64]


@dataclass(frozen=True)
class Settled:
    """What became of a batch.

    `left`: tickets that leave with an answer, as positions in the batch, and their `reasons`. `checked`: shadows that
    have reached the last stage, as positions, and the exits they had `left_at`. `free`: slots to release;
    `cancelled`: those of them that cancelled tickets had.
    """

    left: NDArray[np.int64]
    reasons: NDArray[np.int8]
    checked: NDArray[np.int64]
    left_at: NDArray[np.int64]
    free: Slots
    cancelled: Slots


@dataclass(frozen=True)
class Overdue:
    """Tickets that left their queue because of the deadline, with the exit reached (0: none); release their slots."""

    slots: Slots
    exits: NDArray[np.int64]
    reasons: NDArray[np.int8]


class Scheduler:
    """Tickets in `capacity` slots through `stages` stages in batches of at most `max_batch`.

    `shadow_every` 0 keeps no shadows.
    """

    def __init__(self, capacity: int, stages: int, max_batch: int, *, shadow_every: int = 0, reserve: int = 0) -> None:
        self.stages, self.max_batch = stages, max_batch
        self.request = np.full(capacity, -1, dtype=np.int64)
        self.index = np.zeros(capacity, dtype=np.int64)
        self._shadow_of = np.zeros(capacity, dtype=np.int64)  # the exit a shadow's ticket left at; 0: no shadow
        self._state = np.zeros(capacity, dtype=np.int8)
        self._stage = np.zeros(capacity, dtype=np.int64)
        self._thresholds = np.zeros((capacity, stages))
        self._min_exit = np.ones(capacity, dtype=np.int64)
        self._max_exit = np.full(capacity, stages, dtype=np.int64)
        self._deadline = np.full(capacity, np.inf)
        self._order = np.zeros(capacity, dtype=np.int64)
        self._since = np.zeros(capacity)
        self._cancelled = np.zeros(capacity, dtype=bool)
        self._passed_over = np.zeros(stages, dtype=np.int64)
        self._arrivals = 0
        self._shadow_every, self._reserve = shadow_every, reserve
        self._confident = 0  # tickets that left confident, for the sample of shadows

    def add(self, slots: Slots, request: int, terms: Terms, now: float) -> None:
        """Tickets of one request enter and wait for the first stage."""
        self._move(slots, FREE, WAITING)
        self.request[slots] = request
        self.index[slots] = np.arange(len(slots))
        self._shadow_of[slots] = 0
        self._stage[slots] = 0
        self._thresholds[slots, : self.stages - 1] = terms.thresholds
        self._min_exit[slots], self._max_exit[slots] = terms.min_exit, terms.max_exit
        self._deadline[slots] = terms.deadline
        self._order[slots] = self._arrivals + np.arange(len(slots))
        self._arrivals += len(slots)
        self._since[slots] = now
        self._cancelled[slots] = False

    def overdue(self, now: float, times: StageTimes) -> Overdue:
        """Take out the waiting tickets that rule 7 lets wait no longer."""
        rows = np.flatnonzero((self._state == WAITING) & (self._deadline < np.inf))
        if not len(rows):
            return Overdue(rows, rows, rows.astype(np.int8))
        reached, waiting = self._stage[rows], self.waiting()
        seconds = np.array([times.predict(k, int(n)) for k, n in enumerate(np.minimum(waiting, self.max_batch))])
        ends = now + np.maximum(seconds, seconds[self._choose(waiting)])
        ends[0] = now  # with no answer yet even a late one is worth starting for
        late = (self._deadline[rows] <= ends[reached]) & (reached >= self._min_exit[rows])
        slots, exits = rows[late], reached[late]
        self._move(slots, WAITING, FREE)
        return Overdue(slots, exits, np.where(exits > 0, Reason.DEADLINE, Reason.EXPIRED).astype(np.int8))

    def next_batch(self, now: float) -> Batch | None:
        """The batch to run now, marked as running; None when nothing waits."""
        waiting = self.waiting()
        if not waiting.any():
            return self._shadow_batch(now)
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
        """A batch's scores are known: survivors wait for the next stage, the rest leaves."""
        slots = batch.slots
        reasons = decide(
            batch.stage + 1,
            self.stages,
            scores,
            self._thresholds[slots, batch.stage],
            self._min_exit[slots],
            self._max_exit[slots],
        )
        cancelled, shadow = self._cancelled[slots], self._shadow_of[slots] > 0
        ends = ~cancelled & (reasons != Reason.GOES_ON)
        left = ends & ~shadow
        checked = np.flatnonzero(ends & shadow)
        left_at = self._shadow_of[slots[checked]]
        kept = self._sample(left & (reasons == Reason.CONFIDENT))
        self._shadow(slots[kept], batch.stage + 1)
        goes_on = ~cancelled & ~ends
        self._move(slots[goes_on & ~shadow], RUNNING, WAITING)
        self._move(slots[goes_on & shadow | kept], RUNNING, SHADOW)
        onward = slots[goes_on | kept]
        self._stage[onward], self._since[onward] = batch.stage + 1, now
        free = slots[cancelled | ends & ~kept]
        self._move(free, RUNNING, FREE)
        return Settled(np.flatnonzero(left), reasons[left], checked, left_at, free, slots[cancelled])

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
        requests = np.unique(self.request[batch.slots[self._shadow_of[batch.slots] == 0]])
        self._move(batch.slots, RUNNING, FREE)
        theirs = np.isin(self.request, requests)
        self._cancelled[theirs] = True
        waiting = np.flatnonzero(theirs & (self._state == WAITING))
        self._move(waiting, WAITING, FREE)
        return requests, np.concatenate([batch.slots, waiting])

    def waiting(self) -> NDArray[np.int64]:
        """How many tickets wait for each stage, [K]; shadows do not count."""
        return np.bincount(self._stage[self._state == WAITING], minlength=self.stages)

    def idle(self) -> bool:
        """Whether there is nothing to run, not even a shadow."""
        return not np.isin(self._state, (WAITING, SHADOW)).any()

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

    def _sample(self, confident: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Every `shadow_every`-th of those who leave confident, counted over all batches, while there is room."""
        if not self._shadow_every:
            return np.zeros_like(confident)
        number = self._confident + np.cumsum(confident)
        self._confident += int(confident.sum())
        room = self._reserve - int((self._shadow_of > 0).sum())
        chosen = confident & (number % self._shadow_every == 0)
        kept: NDArray[np.bool_] = chosen & (np.cumsum(chosen) <= room)
        return kept

    def _shadow(self, slots: Slots, exit: int) -> None:
        """From tickets, whose answers are on their way, to shadows that nobody can cancel and nothing lets go."""
        self._shadow_of[slots] = exit
        self.request[slots] = -1
        self._thresholds[slots] = 1.0
        self._max_exit[slots] = self.stages

    def _shadow_batch(self, now: float) -> Batch | None:
        """Shadows of the deepest stage that has any."""
        shadows = self._state == SHADOW
        if not shadows.any():
            return None
        stage = int(self._stage[shadows].max())
        slots = np.flatnonzero(shadows & (self._stage == stage))[: self.max_batch]
        self._move(slots, SHADOW, RUNNING)
        return Batch(stage, slots, now - self._since[slots])

    def _move(self, slots: Slots, source: int, target: int) -> None:
        if (source, target) not in TRANSITIONS or (self._state[slots] != source).any():
            raise RuntimeError(f"illegal transition {source} → {target}")
        self._state[slots] = target
        if target == FREE:
            self._shadow_of[slots] = 0
