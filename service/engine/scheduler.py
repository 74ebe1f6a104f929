"""Which stage runs next, over which tickets. Pure: no clock, no I/O, no device; times are arguments.

Rules
1. A ticket is a row of columns, named by its slot; it is FREE, WAITING (for a stage), RUNNING (in a batch) or a SHADOW.
2. Tickets wait for a stage together, whichever request or batch they came from, first in, first out.
3. Work-conserving: if anything waits, there is a batch.
4. No stage with waiting tickets is passed over more than P times in a row, P = max(patience, K - 1); nor is the oldest
   ticket of a stage by batches of its own stage.
5. Else who is pressed goes first: a ticket that would miss its deadline if another batch went before. Its batch is the
   largest that ends in time for the tightest deadline aboard.
6. Else full batches, the deepest stage of those: their tickets are nearest to an answer.
7. Else the stage whose batch wastes the least of the device now, the deeper where they are alike; the others gather
   company meanwhile. How many of the waiting run is `StageTimes.take`.
8. Where a ticket goes after a stage is `model.exits.decide` and nothing else.
9. A cancelled ticket leaves at once when WAITING and after its batch when RUNNING.
10. A ticket with an exit leaves with it when its next stage cannot end by its deadline any more (`overdue`). One that
    has reached none leaves when the deadline has passed. `min_exit` outranks both.
11. Of the tickets that leave confident, every `shadow_every`-th is answered and kept as a SHADOW, which runs on to the
    last stage when nobody waits, to see whether the answer would have stayed. At most `reserve` at a time.

So a ticket before which m others wait for its stage is aboard after at most (m + 1) * (P + 1) batches, or, where
tickets have deadlines, (m + 1) * (P + 1)**2.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import CONFIDENT, GOES_ON, Reason, decide
from msmlp.service.engine.latency import PATIENCE, StageTimes, Turns
from msmlp.service.engine.messages import Terms
from msmlp.service.engine.tickets import RUNNING, SHADOW, WAITING, Fifo, Slots, Tickets

NOBODY = np.zeros(0, dtype=np.int64)
NO_REASONS = np.zeros(0, dtype=np.int8)
WITHDRAWN = -1
"""Beside the reasons of `decide`: of a cancelled ticket's, which nobody asks for."""


@dataclass(frozen=True)
class Batch:
    """Run stage `stage` (0-based) over `slots`, all of them tickets or all of them shadows.

    `waited` is how long each waited for it, `seconds` how long it should take, the margin included.
    """

    stage: int
    slots: Slots
    waited: NDArray[np.float64]
    seconds: float
    shadows: bool = False


@dataclass(frozen=True)
class Settled:
    """What became of a batch.

    `left`: tickets that leave with an answer, as positions in the batch, and their `reasons`. `checked`: shadows that
    have reached the last stage, as positions, and the exits they had `left_at`. `free`: slots to release; `cancelled`:
    how many cancelled tickets had one of those. `onward`: how many tickets wait for the next stage.
    """

    left: NDArray[np.int64] = field(default_factory=lambda: NOBODY)
    reasons: NDArray[np.int8] = field(default_factory=lambda: NO_REASONS)
    checked: NDArray[np.int64] = field(default_factory=lambda: NOBODY)
    left_at: NDArray[np.int64] = field(default_factory=lambda: NOBODY)
    free: Slots = field(default_factory=lambda: NOBODY)
    cancelled: int = 0
    onward: int = 0


@dataclass(frozen=True)
class Overdue:
    """Tickets that left their queue because of the deadline, with the exit reached (0: none); release their slots."""

    slots: Slots = field(default_factory=lambda: NOBODY)
    exits: NDArray[np.int64] = field(default_factory=lambda: NOBODY)
    reasons: NDArray[np.int8] = field(default_factory=lambda: NO_REASONS)


class Scheduler:
    """Tickets in `capacity` slots through `stages` stages, in batches of at most the largest bucket of `times`.

    `shadow_every` 0 keeps no shadows; `patience` is that of rule 4.
    """

    def __init__(
        self,
        capacity: int,
        stages: int,
        times: StageTimes,
        *,
        shadow_every: int = 0,
        reserve: int = 0,
        patience: int = PATIENCE,
    ) -> None:
        self.stages, self._times = stages, times
        self.tickets = Tickets(capacity, stages)
        self._turns = Turns(stages, times, patience)
        self._queues = [Fifo(capacity) for _ in range(stages)]
        self._shadows = [Fifo(capacity) for _ in range(stages)]
        self._overtaken = [0] * stages  # batches of its own stage that went without the oldest ticket
        self._shadow_every, self._reserve = shadow_every, reserve
        self._confident = 0  # tickets that left confident, for the sample of shadows

    def add(self, slots: Slots, request: int, terms: Terms, now: float) -> None:
        """Tickets of one request enter and wait for the first stage."""
        self.tickets.enter(slots, request, terms, now)
        self._queues[0].push(slots)

    def next_batch(self, now: float, starts: float | None = None) -> Batch | None:
        """The batch to run, marked as running; None when nothing waits. It `starts` when the device is free (now)."""
        waiting = self.waiting()
        if not any(waiting):
            return self._shadow_batch(now)
        stage = self._turns.impatient(waiting)
        pressed = self._pressed(waiting, now if starts is None else starts) if self.tickets.timed else {}
        if stage is None:
            stage = min(pressed, key=lambda k: pressed[k][0]) if pressed else self._turns.worthiest(waiting)
        if stage in pressed and self._overtaken[stage] < self._turns.patience:
            slots = self._in_time(stage, *pressed[stage])
        else:
            slots = self._queues[stage].pop(self._times.take(stage, waiting[stage]))
            self._overtaken[stage] = 0
        self._turns.taken(stage, waiting)
        return self._batch(stage, slots, now)

    def overdue(self, now: float, free: float) -> Overdue:
        """Take out the waiting tickets that rule 10 lets wait no longer, when no batch can start before `free`."""
        if not self.tickets.timed:
            return Overdue()
        gone = []
        for stage, queue in enumerate(self._queues):
            deadline = self.tickets.deadline[queue.slots]
            # With no answer yet even a late one is worth starting for.
            late = deadline < free + self._shortest(stage) if stage else deadline <= now
            gone.append(queue.keep(~late | (self.tickets.min_exit[queue.slots] > stage)))
        slots, exits = np.concatenate(gone), np.repeat(np.arange(self.stages), [len(g) for g in gone])
        self.tickets.end(slots, WAITING)
        return Overdue(slots, exits, np.where(exits > 0, Reason.DEADLINE, Reason.EXPIRED).astype(np.int8))

    def settle(self, batch: Batch, scores: NDArray[np.float32], now: float) -> Settled:
        """A batch's scores are known: survivors wait for the next stage, the rest leaves."""
        self.tickets.require(batch.slots, RUNNING)
        if batch.shadows:
            return self._settle_shadows(batch, now)
        slots, tickets, exit = batch.slots, self.tickets, batch.stage + 1
        reasons = decide(
            exit,
            self.stages,
            scores,
            tickets.thresholds[batch.stage].take(slots),
            tickets.min_exit.take(slots),
            tickets.max_exit.take(slots),
        )
        withdrawn = NOBODY
        if tickets.unwanted:
            cancelled = tickets.cancelled[slots]
            withdrawn, reasons[cancelled] = slots[cancelled], WITHDRAWN
            tickets.end(withdrawn, RUNNING)
        onward = self._go_on(slots[reasons == GOES_ON], exit, now)
        left = (reasons > GOES_ON).nonzero()[0]
        if not len(left):
            return Settled(free=withdrawn, cancelled=len(withdrawn), onward=onward)
        reasons = reasons.take(left)
        free = self._leave(slots.take(left), reasons, exit, now)
        if len(withdrawn):
            free = np.concatenate([withdrawn, free])
        return Settled(left, reasons, free=free, cancelled=len(withdrawn), onward=onward)

    def cancel(self, request: int) -> Slots:
        """Nobody waits for `request`: its waiting tickets are free at once (release these slots)."""
        return self._withdraw(np.array([request]))

    def abandon(self, batch: Batch) -> tuple[NDArray[np.int64], Slots]:
        """The batch failed: every ticket of its requests leaves unanswered → those requests, slots to release.

        Those in another batch leave as cancelled ones do, after it.
        """
        self.tickets.require(batch.slots, RUNNING)
        requests = NOBODY if batch.shadows else np.unique(self.tickets.request[batch.slots])
        self.tickets.end(batch.slots, RUNNING)
        return requests, np.concatenate([batch.slots, self._withdraw(requests)])

    def waiting(self) -> list[int]:
        """How many tickets wait for each stage, [K]; shadows do not count."""
        return [len(queue) for queue in self._queues]

    def idle(self) -> bool:
        """Whether there is nothing to run, not even a shadow."""
        return not any(map(len, self._queues)) and not any(map(len, self._shadows))

    def oldest_since(self) -> list[float]:
        """Since when the longest-waiting ticket of each stage waits, [K]; inf where none does."""
        since = self.tickets.since
        return [since.item(queue.first) if len(queue) else np.inf for queue in self._queues]

    def _pressed(self, waiting: list[int], starts: float) -> dict[int, tuple[float, NDArray[np.bool_]]]:
        """By stage: the time left to the tightest who would be late after another batch, and which ones would."""
        pressed, times = {}, self._times
        another = max(times.predict(k, waits) for k, waits in enumerate(waiting) if waits) * times.margin
        for stage, queue in enumerate(self._queues):
            left = self.tickets.deadline[queue.slots] - starts
            own = times.predict(stage, waiting[stage]) * times.margin
            mine = (left >= self._shortest(stage)) & (left < another + own)  # who is late already, haste cannot help
            if mine.any():
                pressed[stage] = float(left[mine].min()), mine
        return pressed

    def _in_time(self, stage: int, left: float, pressed: NDArray[np.bool_]) -> Slots:
        """The pressed first, the tightest of them ahead, and the oldest of the others where there is room."""
        queue = self._queues[stage]
        room = max(1, self._times.longest_within(stage, left))
        first = pressed.nonzero()[0]
        first = first[np.argsort(self.tickets.deadline[queue.slots[first]], kind="stable")]
        staying = np.ones(len(queue), dtype=bool)
        staying[np.concatenate([first, (~pressed).nonzero()[0]])[:room]] = False
        self._overtaken[stage] = self._overtaken[stage] + 1 if staying[0] else 0
        return queue.keep(staying)

    def _shortest(self, stage: int) -> float:
        """Seconds that a stage takes at the least, the margin included."""
        return self._times.predict(stage, 1) * self._times.margin

    def _batch(self, stage: int, slots: Slots, now: float, *, shadows: bool = False) -> Batch:
        self.tickets.move(slots, SHADOW if shadows else WAITING, RUNNING)
        seconds = self._times.predict(stage, len(slots)) * self._times.margin
        return Batch(stage, slots, now - self.tickets.since.take(slots), seconds, shadows)

    def _shadow_batch(self, now: float) -> Batch | None:
        """Shadows of the deepest stage that has any."""
        for stage in reversed(range(self.stages)):
            if waits := len(self._shadows[stage]):
                slots = self._shadows[stage].pop(min(waits, self._times.buckets[-1]))
                return self._batch(stage, slots, now, shadows=True)
        return None

    def _settle_shadows(self, batch: Batch, now: float) -> Settled:
        if batch.stage + 1 < self.stages:
            self._shadow_on(batch.slots, batch.stage + 1, now)
            return Settled()
        left_at = self.tickets.shadow_of[batch.slots]
        self.tickets.end(batch.slots, RUNNING)
        return Settled(checked=np.arange(len(batch.slots)), left_at=left_at, free=batch.slots)

    def _leave(self, slots: Slots, reasons: NDArray[np.int8], exit: int, now: float) -> Slots:
        """Answered tickets end, but for those that stay as shadows → slots that are free."""
        if self._shadow_every:
            kept = self._sample(reasons == CONFIDENT)
            if len(kept):
                self.tickets.become_shadows(slots[kept], exit)
                self._shadow_on(slots[kept], exit, now)
                slots = np.delete(slots, kept)
        self.tickets.end(slots, RUNNING)
        return slots

    def _go_on(self, slots: Slots, stage: int, now: float) -> int:
        if len(slots):
            self.tickets.move(slots, RUNNING, WAITING)
            self.tickets.since[slots] = now
            self._queues[stage].push(slots)
        return len(slots)

    def _shadow_on(self, slots: Slots, stage: int, now: float) -> None:
        self.tickets.move(slots, RUNNING, SHADOW)
        self.tickets.since[slots] = now
        self._shadows[stage].push(slots)

    def _sample(self, confident: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Every `shadow_every`-th of those who leave confident, counted over all batches, while there is room."""
        before = self._confident % self._shadow_every
        self._confident += int(np.count_nonzero(confident))
        which = confident.nonzero()[0][self._shadow_every - 1 - before :: self._shadow_every]
        return which[: max(0, self._reserve - self.tickets.shadows)]

    def _withdraw(self, requests: NDArray[np.int64]) -> Slots:
        """Tickets of these requests leave: those that wait now, those aboard after their batch."""
        whose = self.tickets.request
        gone = np.concatenate([queue.keep(~np.isin(whose[queue.slots], requests)) for queue in self._queues])
        self.tickets.end(gone, WAITING)
        self.tickets.withdraw(requests)
        return gone
