"""Which stage runs next, over which tickets. Pure: no clock, no I/O, no device; times are arguments.

Rules
1. A ticket is a row of columns, named by its slot; it is FREE, WAITING (for a stage), RUNNING (in a batch) or a SHADOW.
2. Tickets of all requests wait for a stage in one queue, first in, first out.
3. Work-conserving: if a ticket waits, there is a batch.
4. No stage with waiting tickets is passed over more than P times in a row, P = max(patience, K - 1); nor is the oldest
   ticket of a stage by batches of its own stage.
5. Else urgent tickets go first: those that would miss their deadline if another batch ran before. The batch is the
   largest that ends in time for its tightest deadline.
6. Else full batches go first, of the deepest stage that has one: its tickets are nearest to an answer.
7. Else the stage whose batch wastes the least of the device, the deeper one where they are alike; the others collect
   tickets meanwhile. `LatencyModel.take` says how many of the waiting tickets run.
8. `model.exits.rule` alone says where a ticket goes after a stage.
9. A cancelled ticket leaves immediately when WAITING and after its batch when RUNNING.
10. A ticket that has reached an exit leaves with it when its next stage cannot end by its deadline (`overdue`). One
    that has reached none leaves when the deadline has passed. `min_exit` outranks both.
11. Of the tickets that leave confident, every `shadow_every`-th is answered and kept as a SHADOW, which runs on to the
    last stage when no ticket waits, to compare the answers. There are at most `reserve` shadows at a time.

So a ticket behind m others in its queue runs after at most (m + 1) * (P + 1) batches, or, where tickets have
deadlines, (m + 1) * (P + 1)**2.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import CONFIDENT, GOES_ON, Reason, decided
from msmlp.service.engine.latency import PATIENCE, LatencyModel, StageSelector
from msmlp.service.engine.messages import ExitParameters
from msmlp.service.engine.tickets import FREE, RUNNING, SHADOW, WAITING, Fifo, Slots, Tickets

NO_TICKETS = np.zeros(0, dtype=np.int64)
NO_REASONS = np.zeros(0, dtype=np.int8)
WITHDRAWN = -1
"""For cancelled tickets, next to the reasons of the exit rule."""


class Batch(NamedTuple):
    """Run stage `stage` (0-based) over `slots`, all of them tickets or all of them shadows.

    `waited` is how long each waited for it, `seconds` the predicted duration, margin included.
    """

    stage: int
    slots: Slots
    waited: NDArray[np.float64]
    seconds: float
    shadows: bool = False


class Settled(NamedTuple):
    """What became of a batch.

    `left`: positions in the batch of tickets that leave with an answer, and their `reasons`. `checked`: positions of
    shadows that have reached the last stage, and the exits they had `left_at`. `free`: slots to release; `cancelled`:
    how many of those belonged to cancelled tickets. `onward`: how many tickets wait for the next stage.
    """

    left: NDArray[np.int64] = NO_TICKETS
    reasons: NDArray[np.int8] = NO_REASONS
    checked: NDArray[np.int64] = NO_TICKETS
    left_at: NDArray[np.int64] = NO_TICKETS
    free: Slots = NO_TICKETS
    cancelled: int = 0
    onward: int = 0


class Overdue(NamedTuple):
    """Tickets that left their queue at their deadline, and the exit they reached (0: none). Release their slots."""

    slots: Slots = NO_TICKETS
    exits: NDArray[np.int64] = NO_TICKETS
    reasons: NDArray[np.int8] = NO_REASONS


class Scheduler:
    """Tickets in `capacity` slots through `stages` stages, in batches of at most the largest bucket of `latency`.

    `shadow_every` 0 keeps no shadows; `patience` is that of rule 4.
    """

    def __init__(
        self,
        capacity: int,
        stages: int,
        latency: LatencyModel,
        *,
        shadow_every: int = 0,
        reserve: int = 0,
        patience: int = PATIENCE,
    ) -> None:
        self.stages, self._latency = stages, latency
        self.tickets = Tickets(capacity, stages)
        self._selector = StageSelector(stages, latency, patience)
        self._queues = [Fifo(capacity) for _ in range(stages)]
        self._shadows = [Fifo(capacity) for _ in range(stages)]
        self._overtaken = [0] * stages  # batches of its own stage that ran without the oldest ticket
        self._shadow_every, self._reserve = shadow_every, reserve
        self._confident = 0  # tickets that left confident, for the sample of shadows

    def add(self, slots: Slots, request: int, parameters: ExitParameters, now: float) -> None:
        self.tickets.enter(slots, request, parameters, now)
        self._queues[0].push(slots)

    def next_batch(self, now: float, starts: float | None = None) -> Batch | None:
        """The batch to run, marked as running; None if no ticket waits. It starts at `starts`, by default now."""
        waiting = self.waiting()
        if not any(waiting):
            return self._shadow_batch(now)
        stage = self._selector.impatient(waiting)
        urgent = self._urgent(waiting, now if starts is None else starts) if self.tickets.timed else {}
        if stage is None:
            stage = min(urgent, key=lambda k: urgent[k][0]) if urgent else self._selector.worthiest(waiting)
        if stage in urgent and self._overtaken[stage] < self._selector.patience:
            slots = self._in_time(stage, *urgent[stage])
        else:
            slots = self._queues[stage].pop(self._latency.take(stage, waiting[stage]))
            self._overtaken[stage] = 0
        self._selector.taken(stage, waiting)
        return self._batch(stage, slots, now)

    def overdue(self, now: float, free: float) -> Overdue:
        """Take out the waiting tickets that must leave by rule 10, if no batch can start before `free`."""
        if not self.tickets.timed:
            return Overdue()
        gone = []
        for stage, queue in enumerate(self._queues):
            deadline = self.tickets.deadline[queue.slots]
            # Without an answer, even a late one is worth running for.
            late = deadline < free + self._shortest(stage) if stage else deadline <= now
            gone.append(queue.keep(~late | (self.tickets.min_exit[queue.slots] > stage)))
        slots, exits = np.concatenate(gone), np.repeat(np.arange(self.stages), [len(g) for g in gone])
        self.tickets.end(slots, WAITING)
        return Overdue(slots, exits, np.where(exits > 0, Reason.DEADLINE, Reason.EXPIRED).astype(np.int8))

    def settle(self, batch: Batch, scores: NDArray[np.float32], now: float) -> Settled:
        """Take in a batch's scores: survivors wait for the next stage, the others leave."""
        self.tickets.require(batch.slots, RUNNING)
        if batch.shadows:
            return self._settle_shadows(batch, now)
        slots, tickets, exit = batch.slots, self.tickets, batch.stage + 1
        reasons = tickets.others[batch.stage].take(slots)
        if exit < self.stages:
            reasons = decided(scores, tickets.least[batch.stage].take(slots), reasons)
        withdrawn = NO_TICKETS
        if tickets.unwanted:
            cancelled = tickets.cancelled[slots]
            withdrawn, reasons[cancelled] = slots[cancelled], WITHDRAWN
            tickets.end(withdrawn, RUNNING)
        left = (reasons > GOES_ON if len(withdrawn) else reasons).nonzero()[0]
        onward = len(slots) - len(withdrawn) - len(left)
        if onward:
            self._go_on(slots if onward == len(slots) else slots[reasons == GOES_ON], exit, now)
        if not len(left):
            return Settled(free=withdrawn, cancelled=len(withdrawn), onward=onward)
        if len(left) < len(slots):
            slots, reasons = slots.take(left), reasons.take(left)
        free = self._leave(slots, reasons, exit, now)
        if len(withdrawn):
            free = np.concatenate([withdrawn, free])
        return Settled(left, reasons, free=free, cancelled=len(withdrawn), onward=onward)

    def cancel(self, request: int) -> Slots:
        """Drop a request: its waiting tickets leave immediately → their slots, to release."""
        return self._withdraw(np.array([request]))

    def cancel_range(self, first: int, last: int) -> Slots:
        """`cancel` for the requests `first` to `last` - 1."""
        requests = self.tickets.request
        return self._withdraw(np.unique(requests[(requests >= first) & (requests < last)]))

    @property
    def free(self) -> int:
        """How many slots have no ticket."""
        return int(np.count_nonzero(self.tickets.state == FREE))

    def abandon(self, batch: Batch) -> tuple[NDArray[np.int64], Slots]:
        """A batch failed: every ticket of its requests leaves unanswered → those requests, slots to release.

        Their tickets in other batches leave as cancelled ones do, after the batch.
        """
        self.tickets.require(batch.slots, RUNNING)
        requests = NO_TICKETS if batch.shadows else np.unique(self.tickets.request[batch.slots])
        self.tickets.end(batch.slots, RUNNING)
        return requests, np.concatenate([batch.slots, self._withdraw(requests)])

    def waiting(self) -> list[int]:
        """How many tickets wait for each stage, [K]; shadows do not count."""
        return [len(queue) for queue in self._queues]

    def idle(self) -> bool:
        """Whether there is nothing to run, not even a shadow."""
        return not any(self._queues) and not (self.tickets.shadows and any(self._shadows))

    def oldest_since(self) -> list[float]:
        """Since when the oldest waiting ticket of each stage has waited, [K]; inf where none waits."""
        since = self.tickets.since
        return [since.item(queue.first) if len(queue) else np.inf for queue in self._queues]

    def _urgent(self, waiting: list[int], starts: float) -> dict[int, tuple[float, NDArray[np.bool_]]]:
        """By stage, the tickets that would be late after another batch, and the time left to the tightest of them."""
        urgent, latency = {}, self._latency
        another = max(latency.predict(k, waits) for k, waits in enumerate(waiting) if waits) * latency.margin
        for stage, queue in enumerate(self._queues):
            left = self.tickets.deadline[queue.slots] - starts
            own = latency.predict(stage, waiting[stage]) * latency.margin
            mine = (left >= self._shortest(stage)) & (left < another + own)  # one that is late already gains nothing
            if mine.any():
                urgent[stage] = float(left[mine].min()), mine
        return urgent

    def _in_time(self, stage: int, left: float, urgent: NDArray[np.bool_]) -> Slots:
        """A batch of the urgent tickets, the tightest first, filled up with the oldest of the others."""
        queue = self._queues[stage]
        room = max(1, self._latency.longest_within(stage, left))
        first = urgent.nonzero()[0]
        first = first[np.argsort(self.tickets.deadline[queue.slots[first]], kind="stable")]
        staying = np.ones(len(queue), dtype=bool)
        staying[np.concatenate([first, (~urgent).nonzero()[0]])[:room]] = False
        self._overtaken[stage] = self._overtaken[stage] + 1 if staying[0] else 0
        return queue.keep(staying)

    def _shortest(self, stage: int) -> float:
        return self._latency.predict(stage, 1) * self._latency.margin

    def _batch(self, stage: int, slots: Slots, now: float, *, shadows: bool = False) -> Batch:
        self.tickets.move(slots, SHADOW if shadows else WAITING, RUNNING)
        seconds = self._latency.predict(stage, len(slots)) * self._latency.margin
        return Batch(stage, slots, now - self.tickets.since.take(slots), seconds, shadows)

    def _shadow_batch(self, now: float) -> Batch | None:
        for stage in reversed(range(self.stages)):
            if waits := len(self._shadows[stage]):
                slots = self._shadows[stage].pop(min(waits, self._latency.buckets[-1]))
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
        """Answered tickets end, except those kept as shadows → free slots."""
        if self._shadow_every and exit < self.stages:
            kept = self._sample(reasons)
            if len(kept):
                self.tickets.become_shadows(slots[kept], exit)
                self._shadow_on(slots[kept], exit, now)
                slots = np.delete(slots, kept)
        self.tickets.end(slots, RUNNING)
        return slots

    def _go_on(self, slots: Slots, stage: int, now: float) -> None:
        self.tickets.move(slots, RUNNING, WAITING)
        self.tickets.since[slots] = now
        self._queues[stage].push(slots)

    def _shadow_on(self, slots: Slots, stage: int, now: float) -> None:
        self.tickets.move(slots, RUNNING, SHADOW)
        self.tickets.since[slots] = now
        self._shadows[stage].push(slots)

    def _sample(self, reasons: NDArray[np.int8]) -> NDArray[np.int64]:
        """Every `shadow_every`-th confident ticket, counted over all batches, while there is room."""
        before = self._confident % self._shadow_every
        confident = reasons.tobytes().count(CONFIDENT)
        self._confident += confident
        if before + confident < self._shadow_every:
            return NO_TICKETS
        which: NDArray[np.int64] = (reasons == CONFIDENT).nonzero()[0]
        which = which[self._shadow_every - 1 - before :: self._shadow_every]
        return which[: max(0, self._reserve - self.tickets.shadows)]

    def _withdraw(self, requests: NDArray[np.int64]) -> Slots:
        """Tickets of these requests leave: waiting ones now, running ones after their batch."""
        whose = self.tickets.request
        gone = np.concatenate([queue.keep(~np.isin(whose[queue.slots], requests)) for queue in self._queues])
        self.tickets.end(gone, WAITING)
        self.tickets.withdraw(requests)
        return gone
