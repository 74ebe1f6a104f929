"""The scheduler by hand, and under random events against a plain model of what it promises."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from model.exits import Reason
from service.engine.messages import Terms
from service.engine.scheduler import PATIENCE, Batch, Scheduler, Slots


def slots(*numbers: int) -> Slots:
    return np.array(numbers, dtype=np.int64)


def enter(
    scheduler: Scheduler,
    where: Slots,
    request: int = 0,
    *,
    thresholds: tuple[float, ...] | None = None,
    min_exit: int = 1,
    max_exit: int | None = None,
    now: float = 0.0,
) -> None:
    """Tickets whose thresholds are all 0.5 unless said."""
    chosen = np.array(thresholds if thresholds is not None else [0.5] * (scheduler.stages - 1))
    high = scheduler.stages if max_exit is None else max_exit
    scheduler.add(where, request, Terms(chosen, min_exit, high), now)


def run(scheduler: Scheduler, now: float = 0.0) -> Batch:
    batch = scheduler.next_batch(now)
    assert batch is not None
    return batch


def scores(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_nothing_waiting_is_no_batch() -> None:
    scheduler = Scheduler(4, 2, 4)
    assert scheduler.next_batch(0.0) is None
    enter(scheduler, slots(0))
    run(scheduler)
    assert scheduler.next_batch(0.0) is None


def test_a_batch_is_the_oldest_first_whatever_their_slots() -> None:
    scheduler = Scheduler(8, 2, 3)
    enter(scheduler, slots(5, 2), request=1, now=1.0)
    enter(scheduler, slots(7, 0), request=2, now=2.0)
    batch = run(scheduler, now=10.0)
    assert batch.stage == 0
    assert batch.slots.tolist() == [5, 2, 7]
    assert batch.waited.tolist() == [9.0, 9.0, 8.0]
    assert run(scheduler, now=10.0).slots.tolist() == [0]


def test_tickets_know_their_request_and_their_place_in_it() -> None:
    scheduler = Scheduler(8, 2, 8)
    enter(scheduler, slots(5, 2, 6), request=41)
    assert scheduler.request[slots(5, 2, 6)].tolist() == [41, 41, 41]
    assert scheduler.index[slots(5, 2, 6)].tolist() == [0, 1, 2]


def test_who_is_sure_leaves_and_the_others_wait_for_the_next_stage() -> None:
    scheduler = Scheduler(8, 2, 8)
    enter(scheduler, slots(0, 1, 2), now=0.0)
    settled = scheduler.settle(run(scheduler), scores(0.9, 0.1, 0.5), now=4.0)
    assert settled.left.tolist() == [0, 2]
    assert settled.reasons.tolist() == [Reason.CONFIDENT, Reason.CONFIDENT]
    assert scheduler.waiting().tolist() == [0, 1]
    assert scheduler.oldest_since().tolist() == [np.inf, 4.0]
    last = run(scheduler, now=5.0)
    assert (last.stage, last.slots.tolist(), last.waited.tolist()) == (1, [1], [1.0])
    settled = scheduler.settle(last, scores(0.0), now=6.0)
    assert settled.reasons.tolist() == [Reason.FINAL]
    assert scheduler.waiting().tolist() == [0, 0]


def test_survivors_of_different_requests_and_batches_run_together() -> None:
    scheduler = Scheduler(8, 2, 2)
    enter(scheduler, slots(0, 1), request=1)
    enter(scheduler, slots(2, 3), request=2)
    scheduler.settle(run(scheduler), scores(0.1, 0.9), now=1.0)
    scheduler.settle(run(scheduler), scores(0.9, 0.1), now=2.0)
    merged = run(scheduler, now=3.0)
    assert (merged.stage, merged.slots.tolist()) == (1, [0, 3])
    assert scheduler.request[merged.slots].tolist() == [1, 2]


def test_thresholds_and_bounds_are_each_requests_own() -> None:
    scheduler = Scheduler(8, 3, 8)
    enter(scheduler, slots(0), request=0, thresholds=(0.0, 0.0))
    enter(scheduler, slots(1), request=1, thresholds=(1.0, 1.0))
    enter(scheduler, slots(2), request=2, thresholds=(1.0, 1.0), max_exit=1)
    enter(scheduler, slots(3), request=3, thresholds=(0.0, 0.0), min_exit=2)
    settled = scheduler.settle(run(scheduler), scores(0.5, 0.5, 0.5, 0.5), now=0.0)
    assert settled.left.tolist() == [0, 2]
    assert settled.reasons.tolist() == [Reason.CONFIDENT, Reason.MAX_EXIT]
    second = run(scheduler)
    settled = scheduler.settle(second, scores(0.5, 0.5), now=0.0)
    assert second.slots[settled.left].tolist() == [3]


def test_a_slot_used_again_keeps_nothing_of_the_ticket_before() -> None:
    scheduler = Scheduler(1, 2, 1)
    enter(scheduler, slots(0), request=1, thresholds=(1.0,), max_exit=1, now=0.0)
    batch = run(scheduler)
    assert scheduler.cancel(1).tolist() == []
    scheduler.settle(batch, scores(0.9), now=1.0)
    enter(scheduler, slots(0), request=2, thresholds=(0.5,), now=5.0)
    batch = run(scheduler, now=6.0)
    assert batch.waited.tolist() == [1.0]
    settled = scheduler.settle(batch, scores(0.4), now=7.0)
    assert settled.left.tolist() == settled.cancelled.tolist() == []
    assert scheduler.waiting().tolist() == [0, 1]


def test_a_full_deep_batch_goes_first_and_a_thin_one_gathers_company() -> None:
    scheduler = Scheduler(16, 2, 4)
    enter(scheduler, slots(*range(12)))
    scheduler.settle(run(scheduler), scores(0.1, 0.1, 0.9, 0.9), now=0.0)
    thin = run(scheduler)
    assert thin.stage == 0, "two survivors wait for more"
    scheduler.settle(thin, scores(0.1, 0.1, 0.9, 0.9), now=0.0)
    assert run(scheduler).stage == 1, "four of them are a full batch"


def test_a_thin_deep_batch_is_not_passed_over_for_ever() -> None:
    scheduler = Scheduler(64, 2, 4)
    enter(scheduler, slots(*range(60)))
    batch = run(scheduler)
    scheduler.settle(batch, scores(0.1, 0.9, 0.9, 0.9), now=0.0)
    stages = []
    for _ in range(PATIENCE + 1):
        batch = run(scheduler)
        stages.append(batch.stage)
        scheduler.settle(batch, np.ones(len(batch.slots), dtype=np.float32), now=0.0)
    assert stages == [0] * PATIENCE + [1]


def test_cancelling_frees_who_waits_at_once_and_who_runs_after_its_batch() -> None:
    scheduler = Scheduler(8, 2, 2)
    enter(scheduler, slots(0, 1, 2), request=1)
    enter(scheduler, slots(3), request=2)
    batch = run(scheduler)
    assert scheduler.cancel(1).tolist() == [2]
    assert scheduler.waiting().tolist() == [1, 0]
    settled = scheduler.settle(batch, scores(0.9, 0.1), now=0.0)
    assert settled.left.tolist() == []
    assert settled.cancelled.tolist() == [0, 1]
    assert scheduler.cancel(1).tolist() == []
    assert run(scheduler).slots.tolist() == [3]


def test_cancelling_nobody() -> None:
    scheduler = Scheduler(4, 2, 2)
    enter(scheduler, slots(0), request=1)
    assert scheduler.cancel(7).tolist() == []
    assert scheduler.waiting().tolist() == [1, 0]


def test_abandoning_a_batch_fails_its_requests_and_nobody_elses() -> None:
    scheduler = Scheduler(8, 2, 2)
    enter(scheduler, slots(0, 1, 2), request=1)
    enter(scheduler, slots(3), request=2)
    requests, freed = scheduler.abandon(run(scheduler))
    assert requests.tolist() == [1]
    assert sorted(freed.tolist()) == [0, 1, 2]
    assert run(scheduler).slots.tolist() == [3]


def test_nothing_more_comes_of_a_failed_request_from_another_batch_in_flight() -> None:
    scheduler = Scheduler(8, 2, 2)
    enter(scheduler, slots(0, 1, 2), request=1)
    first, second = run(scheduler), run(scheduler)
    scheduler.abandon(first)
    settled = scheduler.settle(second, scores(0.9), now=0.0)
    assert settled.left.tolist() == []
    assert settled.cancelled.tolist() == [2]


def test_illegal_transitions_raise() -> None:
    scheduler = Scheduler(4, 2, 2)
    enter(scheduler, slots(0, 1))
    with pytest.raises(RuntimeError, match="illegal transition"):
        enter(scheduler, slots(1))  # waiting already
    batch = run(scheduler)
    with pytest.raises(RuntimeError, match="illegal transition"):
        enter(scheduler, slots(1))  # running
    scheduler.settle(batch, scores(0.9, 0.1), now=0.0)
    with pytest.raises(RuntimeError, match="illegal transition"):
        scheduler.settle(batch, scores(0.9, 0.1), now=0.0)  # settled already
    with pytest.raises(RuntimeError, match="illegal transition"):
        scheduler.abandon(batch)
    never_run = Batch(0, slots(3), np.zeros(1))
    with pytest.raises(RuntimeError, match="illegal transition"):
        scheduler.settle(never_run, scores(0.9), now=0.0)
    with pytest.raises(RuntimeError, match="illegal transition"):
        scheduler.abandon(never_run)
    assert run(scheduler).slots.tolist() == [1], "the refused events changed nothing"


def test_one_stage_only() -> None:
    scheduler = Scheduler(2, 1, 2)
    enter(scheduler, slots(0, 1), thresholds=())
    assert scheduler.settle(run(scheduler), scores(0.0, 1.0), now=0.0).reasons.tolist() == [Reason.FINAL] * 2


@dataclass
class Ticket:
    request: int
    index: int
    order: int
    thresholds: tuple[float, ...]
    low: int
    high: int
    since: float
    stage: int = 0
    running: bool = False
    unwanted: bool = field(default=False)

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

    @initialize(stages=st.integers(1, 5), max_batch=st.integers(1, 6), capacity=st.integers(1, 24))
    def begin(self, stages: int, max_batch: int, capacity: int) -> None:
        self.scheduler = Scheduler(capacity, stages, max_batch)
        self.stages, self.max_batch = stages, max_batch
        self.free = list(range(capacity))
        self.tickets: dict[int, Ticket] = {}
        self.running: list[Batch] = []
        self.ended: Counter[tuple[int, int]] = Counter()
        self.entered: list[tuple[int, int]] = []
        self.passed_over = [0] * stages
        self.requests = 0
        self.now = 0.0

    def waiting(self, stage: int) -> list[int]:
        """Slots that wait for a stage, oldest first."""
        mine = [s for s, t in self.tickets.items() if t.stage == stage and not t.running]
        return sorted(mine, key=lambda slot: self.tickets[slot].order)

    def end(self, slot: int) -> None:
        ticket = self.tickets.pop(slot)
        self.ended[ticket.request, ticket.index] += 1
        self.free.append(slot)

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.free)))
        chosen = [self.free.pop(data.draw(st.integers(0, len(self.free) - 1))) for _ in range(count)]
        thresholds = tuple(data.draw(st.sampled_from(LEVELS)) for _ in range(self.stages - 1))
        low, high = sorted((data.draw(st.integers(1, self.stages)), data.draw(st.integers(1, self.stages))))
        self.now += data.draw(st.integers(0, 3))
        self.scheduler.add(slots(*chosen), self.requests, Terms(np.array(thresholds), low, high), self.now)
        for index, slot in enumerate(chosen):
            order = len(self.entered)
            self.tickets[slot] = Ticket(self.requests, index, order, thresholds, low, high, self.now)
            self.entered.append((self.requests, index))
        self.requests += 1

    @precondition(lambda self: len(self.running) < 2)
    @rule()
    def next_batch(self) -> None:
        queues = [self.waiting(stage) for stage in range(self.stages)]
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            assert not any(queues), "work waits and nothing runs"
            return
        # Of one stage, at most a batch, the oldest first, and no smaller than it could be.
        assert batch.slots.tolist() == queues[batch.stage][: self.max_batch]
        assert batch.waited.tolist() == [self.now - self.tickets[s].since for s in batch.slots.tolist()]
        for stage, queue in enumerate(queues):
            self.passed_over[stage] = 0 if stage == batch.stage or not queue else self.passed_over[stage] + 1
            # With more stages than that, round and round is the best there is.
            assert self.passed_over[stage] <= max(PATIENCE, self.stages - 1), "a stage starves"
        for slot in batch.slots.tolist():
            self.tickets[slot].running = True
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
        cancelled = settled.cancelled.tolist()
        for position, (slot, score) in enumerate(zip(members, given, strict=True)):
            ticket = self.tickets[slot]
            expected = Reason.GOES_ON if ticket.unwanted else ticket.outcome(score, self.stages)
            assert reasons.get(position, Reason.GOES_ON) == expected
            assert (slot in cancelled) == ticket.unwanted
            if ticket.unwanted or expected != Reason.GOES_ON:
                self.end(slot)
            else:
                ticket.stage, ticket.running, ticket.since = ticket.stage + 1, False, self.now

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        members = batch.slots.tolist()
        hit = {self.tickets[slot].request for slot in members}
        requests, freed = self.scheduler.abandon(batch)
        assert set(requests.tolist()) == hit
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
        assert self.scheduler.waiting().tolist() == [len(queue) for queue in queues]
        since = [min((self.tickets[s].since for s in queue), default=np.inf) for queue in queues]
        assert self.scheduler.oldest_since().tolist() == since

    def teardown(self) -> None:
        """Whatever happened: what is left runs to its end, everyone ended once, and every slot is free."""
        if not hasattr(self, "scheduler"):
            return
        for batch in self.running:
            self.settle_with(batch, [0.0] * len(batch.slots))
        while (batch := self.scheduler.next_batch(self.now)) is not None:
            self.settle_with(batch, [0.0] * len(batch.slots))
        assert not self.tickets
        assert set(self.ended) == set(self.entered)
        assert set(self.ended.values()) <= {1}, "a ticket ended twice"


TestReplay = Replay.TestCase
