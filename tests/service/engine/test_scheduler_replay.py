"""The scheduler under random events, against a plain model of what it promises."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from msmlp.model.backends.protocol import buckets_up_to
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.latency import LatencyModel
from msmlp.service.engine.messages import ExitParameters
from msmlp.service.engine.scheduler import Batch, Scheduler, Settled
from tests.service.engine.tickets import enter, scores, slots


@dataclass
class Ticket:
    request: int
    index: int
    order: int
    """In which it came to wait for its stage."""
    thresholds: tuple[float, ...]
    low: int
    high: int
    since: float
    stage: int = 0
    running: bool = False
    unwanted: bool = False
    deadline: float = np.inf
    left_at: int = 0
    before: int = 0
    """How many waited for its stage when it came."""
    batches: int = 0
    """How many have gone since."""

    def outcome(self, score: float, stages: int) -> Reason:
        exit = self.stage + 1
        if exit == stages:
            return Reason.FINAL
        limit = self.thresholds[self.stage]
        if exit >= self.low and limit != 1 and score >= limit:
            return Reason.CONFIDENT
        return Reason.MAX_EXIT if exit >= self.high else Reason.GOES_ON


LEVELS = (0.0, 0.25, 0.5, 1.0)


class Replay(RuleBasedStateMachine):
    """Random events; at every step the scheduler must do what a plain model of tickets says."""

    @initialize(
        stages=st.integers(1, 5),
        max_batch=st.integers(1, 6),
        capacity=st.integers(1, 24),
        patience=st.integers(1, 4),
        shadow_every=st.integers(0, 3),
        reserve=st.integers(0, 4),
        data=st.data(),
    )
    def begin(
        self,
        stages: int,
        max_batch: int,
        capacity: int,
        patience: int,
        shadow_every: int,
        reserve: int,
        data: st.DataObject,
    ) -> None:
        self.stages, self.max_batch, self.capacity = stages, max_batch, capacity
        self.patience = max(patience, stages - 1)
        self.shadow_every, self.reserve, self.confident = shadow_every, reserve, 0
        buckets = buckets_up_to(max_batch)
        steps = data.draw(st.lists(st.integers(0, 4), min_size=len(buckets) * stages, max_size=len(buckets) * stages))
        seconds = np.cumsum(np.array(steps, dtype=float).reshape(stages, len(buckets)), axis=1)
        self.times = LatencyModel(buckets, seconds)
        self.times.margin = data.draw(st.sampled_from((1.0, 1.5)))
        self.scheduler = Scheduler(
            capacity + reserve, stages, self.times, shadow_every=shadow_every, reserve=reserve, patience=patience
        )
        self.free = list(range(capacity + reserve))
        self.tickets: dict[int, Ticket] = {}
        self.shadows: dict[int, Ticket] = {}
        self.running: list[Batch] = []
        self.ended: Counter[tuple[int, int]] = Counter()
        self.entered: list[tuple[int, int]] = []
        self.passed_over, self.overtaken = [0] * stages, [0] * stages
        self.queued = 0
        self.deadlines = False
        self.requests = 0
        self.now = 0.0

    def waiting(self, stage: int) -> list[int]:
        """Slots that wait for a stage, oldest first."""
        mine = [s for s, t in self.tickets.items() if t.stage == stage and not t.running]
        return sorted(mine, key=lambda slot: self.tickets[slot].order)

    def wait(self, slot: int, ticket: Ticket, stage: int) -> None:
        """A ticket comes to wait for a stage."""
        ticket.stage, ticket.running, ticket.since, ticket.batches = stage, False, self.now, 0
        ticket.before = len(self.waiting(stage)) - (slot in self.waiting(stage))
        ticket.order, self.queued = self.queued, self.queued + 1

    def end(self, slot: int) -> None:
        ticket = self.tickets.pop(slot)
        self.ended[ticket.request, ticket.index] += 1
        self.free.append(slot)

    @precondition(lambda self: len(self.tickets) < self.capacity)
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.capacity - len(self.tickets)))
        chosen = [self.free.pop(data.draw(st.integers(0, len(self.free) - 1))) for _ in range(count)]
        thresholds = tuple(data.draw(st.sampled_from(LEVELS)) for _ in range(self.stages - 1))
        low, high = sorted((data.draw(st.integers(0, self.stages)), data.draw(st.integers(1, self.stages))))
        self.now += data.draw(st.integers(0, 3))
        deadline = data.draw(st.sampled_from((np.inf, *range(12)))) + self.now
        self.scheduler.add(
            slots(*chosen), self.requests, ExitParameters(np.array(thresholds), low, high, deadline), self.now
        )
        self.deadlines |= deadline < np.inf
        for index, slot in enumerate(chosen):
            self.tickets[slot] = Ticket(self.requests, index, 0, thresholds, low, high, self.now, deadline=deadline)
            self.wait(slot, self.tickets[slot], 0)
            self.entered.append((self.requests, index))
        self.requests += 1

    @rule(data=st.data())
    def overdue(self, data: st.DataObject) -> None:
        """As the core does: tickets that cannot wait for the next batch leave with the exit they have."""
        self.now += data.draw(st.integers(0, 3))
        free = self.now + data.draw(st.integers(0, 5))
        gone = self.scheduler.overdue(self.now, free)
        expected = {}
        for slot, ticket in self.tickets.items():
            late = ticket.deadline < free + self.shortest(ticket.stage) if ticket.stage else ticket.deadline <= self.now
            if late and not ticket.running and ticket.stage >= ticket.low:
                reason = Reason.DEADLINE if ticket.stage else Reason.EXPIRED
                expected[slot] = (ticket.stage, reason)
        told = zip(gone.exits.tolist(), gone.reasons.tolist(), strict=True)
        assert dict(zip(gone.slots.tolist(), told, strict=True)) == expected
        for slot in expected:
            self.end(slot)

    def shortest(self, stage: int) -> float:
        return self.times.predict(stage, 1) * self.times.margin

    @precondition(lambda self: len(self.running) < 2)
    @rule(delay=st.integers(0, 3))
    def next_batch(self, delay: int) -> None:
        """`delay`: the device is not free yet."""
        queues = [self.waiting(stage) for stage in range(self.stages)]
        batch = self.scheduler.next_batch(self.now, self.now + delay)
        resting = {slot for slot, shadow in self.shadows.items() if not shadow.running}
        if batch is None:
            assert not any(queues), "work waits and nothing runs"
            assert not resting, "shadows could run"
            return
        assert batch.seconds == self.times.predict(batch.stage, len(batch.slots)) * self.times.margin
        assert batch.shadows == bool(set(batch.slots.tolist()) & set(self.shadows))
        if batch.shadows:
            assert not any(queues), "a shadow runs while a request waits"
            self.run_shadows(batch, resting)
            return
        self.check_order(batch, queues[batch.stage])
        self.check_deadlines(batch, self.now + delay)
        self.check_waits(batch, queues)
        for slot in batch.slots.tolist():
            self.tickets[slot].running = True
        self.running.append(batch)

    def check_order(self, batch: Batch, queue: list[int]) -> None:
        """Of one stage, at most a batch, no smaller than it could be, the oldest first where nothing presses."""
        members = batch.slots.tolist()
        assert 1 <= len(members) <= self.max_batch
        assert members == [slot for slot in queue if slot in set(members)], "in the order they came"
        assert batch.waited.tolist() == [self.now - self.tickets[s].since for s in members]
        if all(self.tickets[slot].deadline == np.inf for slot in self.tickets):
            assert members == queue[: len(members)]
            assert 2 * len(members) >= min(len(queue), self.times.full(batch.stage))

    def check_deadlines(self, batch: Batch, starts: float) -> None:
        """No ticket that could be in time is made late by the rest of its batch, except for one that was overtaken."""
        if self.overtaken[batch.stage] < self.patience:
            for slot in batch.slots.tolist():
                left = self.tickets[slot].deadline - starts
                assert left < self.shortest(batch.stage) or left >= batch.seconds

    def check_waits(self, batch: Batch, queues: list[list[int]]) -> None:
        """No stage starves, no ticket starves in its stage, and none waits longer than the stated bound."""
        turns = self.patience + 1
        for stage, queue in enumerate(queues):
            self.passed_over[stage] = 0 if stage == batch.stage or not queue else self.passed_over[stage] + 1
            assert self.passed_over[stage] <= self.patience, "a stage starves"
            for slot in queue:
                ticket = self.tickets[slot]
                ticket.batches += 1
                assert ticket.batches <= (ticket.before + 1) * turns ** (2 if self.deadlines else 1)
        head = queues[batch.stage][0]
        self.overtaken[batch.stage] = 0 if head in batch.slots else self.overtaken[batch.stage] + 1
        assert self.overtaken[batch.stage] <= self.patience, "the oldest starves"

    def run_shadows(self, batch: Batch, resting: set[int]) -> None:
        members = batch.slots.tolist()
        assert set(members) <= resting
        assert len(members) <= self.max_batch
        assert {self.shadows[slot].stage for slot in members} == {batch.stage}
        assert batch.waited.tolist() == [self.now - self.shadows[slot].since for slot in members]
        for slot in members:
            self.shadows[slot].running = True
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.now += data.draw(st.integers(0, 3))
        self.settle_with(batch, [data.draw(st.sampled_from(LEVELS)) for _ in batch.slots])

    def settle_with(self, batch: Batch, given: list[float]) -> None:
        members = batch.slots.tolist()
        settled = self.scheduler.settle(batch, scores(*given), self.now)
        reasons = dict(zip(settled.left.tolist(), settled.reasons.tolist(), strict=True))
        if members[0] in self.shadows:
            assert not reasons, "a shadow is answered again"
            assert not settled.cancelled
            self.settle_shadows(batch, settled)
            return
        assert not len(settled.checked)
        room, freed = self.reserve - len(self.shadows), settled.free.tolist()
        assert settled.cancelled == sum(self.tickets[slot].unwanted for slot in members)
        onward = 0
        for position, (slot, score) in enumerate(zip(members, given, strict=True)):
            ticket = self.tickets[slot]
            expected = Reason.GOES_ON if ticket.unwanted else ticket.outcome(score, self.stages)
            assert reasons.get(position, Reason.GOES_ON) == expected
            if expected == Reason.CONFIDENT and self.is_sampled() and room:
                room -= 1
                self.shadows[slot] = self.tickets.pop(slot)
                self.ended[ticket.request, ticket.index] += 1
                self.shadows[slot].left_at = batch.stage + 1
                ticket.stage, ticket.running, ticket.since = ticket.stage + 1, False, self.now
            elif ticket.unwanted or expected != Reason.GOES_ON:
                freed.remove(slot)
                self.end(slot)
            else:
                onward += 1
                self.wait(slot, ticket, ticket.stage + 1)
        assert settled.onward == onward
        assert not freed, "more slots are free than tickets have left"

    def is_sampled(self) -> bool:
        """Whether the confident ticket that leaves now is an n-th."""
        self.confident += 1
        return self.shadow_every > 0 and self.confident % self.shadow_every == 0

    def settle_shadows(self, batch: Batch, settled: Settled) -> None:
        members = batch.slots.tolist()
        if batch.stage + 1 < self.stages:
            assert len(settled.free) == len(settled.checked) == 0
            for slot in members:
                shadow = self.shadows[slot]
                shadow.stage, shadow.running, shadow.since = shadow.stage + 1, False, self.now
            return
        assert settled.checked.tolist() == list(range(len(members)))
        assert settled.left_at.tolist() == [self.shadows[slot].left_at for slot in members]
        assert sorted(settled.free.tolist()) == sorted(members)
        self.forget_shadows(members)

    def forget_shadows(self, members: list[int]) -> None:
        for slot in members:
            del self.shadows[slot]
            self.free.append(slot)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        members = batch.slots.tolist()
        hit = {self.tickets[slot].request for slot in members if slot in self.tickets}
        requests, freed = self.scheduler.abandon(batch)
        assert set(requests.tolist()) == hit
        if not hit:
            assert sorted(freed.tolist()) == sorted(members)
            self.forget_shadows(members)
            return
        theirs = [s for s, t in self.tickets.items() if t.request in hit]
        assert sorted(freed.tolist()) == sorted(s for s in theirs if s in members or not self.tickets[s].running)
        for slot in freed.tolist():
            self.end(slot)
        for slot in set(theirs) - set(freed.tolist()):
            self.tickets[slot].unwanted = True

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.integers(0, self.requests - 1))
        mine = [s for s, t in self.tickets.items() if t.request == request]
        freed = self.scheduler.cancel(request).tolist()
        assert sorted(freed) == sorted(s for s in mine if not self.tickets[s].running)
        for slot in freed:
            self.end(slot)
        for slot in set(mine) - set(freed):
            self.tickets[slot].unwanted = True

    @invariant()
    def queues_are_what_they_should_be(self) -> None:
        queues = [self.waiting(stage) for stage in range(self.stages)]
        assert self.scheduler.waiting() == [len(queue) for queue in queues]
        since = [min((self.tickets[s].since for s in queue), default=np.inf) for queue in queues]
        assert self.scheduler.oldest_since() == since
        resting = [shadow for shadow in self.shadows.values() if not shadow.running]
        assert self.scheduler.idle() == (not any(queues) and not resting)

    @invariant()
    def shadows_take_no_place_from_a_request(self) -> None:
        assert len(self.shadows) <= self.reserve
        assert len(self.free) >= self.capacity - len(self.tickets)

    def teardown(self) -> None:
        """Whatever happened: what is left runs to its end, every ticket has ended once, and every slot is free."""
        if not hasattr(self, "scheduler"):
            return
        for batch in self.running:
            self.settle_with(batch, [0.0] * len(batch.slots))
        while (batch := self.scheduler.next_batch(self.now)) is not None:
            self.settle_with(batch, [0.0] * len(batch.slots))
        assert not self.tickets
        assert not self.shadows
        tickets = self.scheduler.tickets
        assert (tickets.timed, tickets.unwanted, tickets.shadows) == (0, 0, 0)
        enter(self.scheduler, slots(*range(self.capacity + self.reserve)))  # raises for a slot that is not free
        assert set(self.ended) == set(self.entered)
        assert set(self.ended.values()) <= {1}, "a ticket ended twice"


TestReplay = Replay.TestCase
