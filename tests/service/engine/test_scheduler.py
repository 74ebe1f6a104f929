"""The scheduler by hand, and under random events against a plain model of what it promises."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from msmlp.model.backends.protocol import buckets_up_to
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.latency import PATIENCE, LatencyModel
from msmlp.service.engine.messages import ExitParameters
from msmlp.service.engine.scheduler import Batch, Scheduler, Settled
from msmlp.service.engine.tickets import Slots


def slots(*numbers: int) -> Slots:
    return np.array(numbers, dtype=np.int64)


def scheduler_of(
    capacity: int, stages: int, max_batch: int, *, seconds: Sequence[float] | None = None, **options: int
) -> Scheduler:
    """Every batch of a stage takes its `seconds` (1), whatever its size: the fuller the better."""
    buckets = buckets_up_to(max_batch)
    each = np.array(seconds if seconds is not None else [1.0] * stages)
    times = LatencyModel(buckets, np.repeat(each[:, None], len(buckets), axis=1))
    times.margin = 1.0
    return Scheduler(capacity, stages, times, **options)


def enter(
    scheduler: Scheduler,
    where: Slots,
    request: int = 0,
    *,
    thresholds: tuple[float, ...] | None = None,
    min_exit: int = 1,
    max_exit: int | None = None,
    deadline: float = np.inf,
    now: float = 0.0,
) -> None:
    """Tickets whose thresholds are all 0.5 unless said."""
    chosen = np.array(thresholds if thresholds is not None else [0.5] * (scheduler.stages - 1))
    high = scheduler.stages if max_exit is None else max_exit
    scheduler.add(where, request, ExitParameters(chosen, min_exit, high, deadline), now)


def run(scheduler: Scheduler, now: float = 0.0) -> Batch:
    batch = scheduler.next_batch(now)
    assert batch is not None
    return batch


def scores(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_nothing_waiting_is_no_batch() -> None:
    scheduler = scheduler_of(4, 2, 4)
    assert scheduler.next_batch(0.0) is None
    enter(scheduler, slots(0))
    run(scheduler)
    assert scheduler.next_batch(0.0) is None


def test_a_batch_is_the_oldest_first_whatever_their_slots() -> None:
    scheduler = scheduler_of(8, 2, 3)
    enter(scheduler, slots(5, 2), request=1, now=1.0)
    enter(scheduler, slots(7, 0), request=2, now=2.0)
    batch = run(scheduler, now=10.0)
    assert batch.stage == 0
    assert batch.slots.tolist() == [5, 2, 7]
    assert batch.waited.tolist() == [9.0, 9.0, 8.0]
    assert run(scheduler, now=10.0).slots.tolist() == [0]


def test_tickets_know_their_request_and_their_place_in_it() -> None:
    scheduler = scheduler_of(8, 2, 8)
    enter(scheduler, slots(5, 2, 6), request=41)
    assert scheduler.tickets.request[slots(5, 2, 6)].tolist() == [41, 41, 41]
    assert scheduler.tickets.index[slots(5, 2, 6)].tolist() == [0, 1, 2]


def test_who_is_sure_leaves_and_the_others_wait_for_the_next_stage() -> None:
    scheduler = scheduler_of(8, 2, 8)
    enter(scheduler, slots(0, 1, 2), now=0.0)
    settled = scheduler.settle(run(scheduler), scores(0.9, 0.1, 0.5), now=4.0)
    assert settled.left.tolist() == [0, 2]
    assert settled.reasons.tolist() == [Reason.CONFIDENT, Reason.CONFIDENT]
    assert scheduler.waiting() == [0, 1]
    assert scheduler.oldest_since() == [np.inf, 4.0]
    last = run(scheduler, now=5.0)
    assert (last.stage, last.slots.tolist(), last.waited.tolist()) == (1, [1], [1.0])
    settled = scheduler.settle(last, scores(0.0), now=6.0)
    assert settled.reasons.tolist() == [Reason.FINAL]
    assert scheduler.waiting() == [0, 0]


def test_survivors_of_different_requests_and_batches_run_together() -> None:
    scheduler = scheduler_of(8, 2, 2)
    enter(scheduler, slots(0, 1), request=1)
    enter(scheduler, slots(2, 3), request=2)
    scheduler.settle(run(scheduler), scores(0.1, 0.9), now=1.0)
    scheduler.settle(run(scheduler), scores(0.9, 0.1), now=2.0)
    merged = run(scheduler, now=3.0)
    assert (merged.stage, merged.slots.tolist()) == (1, [0, 3])
    assert scheduler.tickets.request[merged.slots].tolist() == [1, 2]


def test_thresholds_and_bounds_are_each_requests_own() -> None:
    scheduler = scheduler_of(8, 3, 8)
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
    scheduler = scheduler_of(1, 2, 1)
    enter(scheduler, slots(0), request=1, thresholds=(1.0,), max_exit=1, now=0.0)
    batch = run(scheduler)
    assert scheduler.cancel(1).tolist() == []
    scheduler.settle(batch, scores(0.9), now=1.0)
    enter(scheduler, slots(0), request=2, thresholds=(0.5,), now=5.0)
    batch = run(scheduler, now=6.0)
    assert batch.waited.tolist() == [1.0]
    settled = scheduler.settle(batch, scores(0.4), now=7.0)
    assert (settled.left.tolist(), settled.cancelled) == ([], 0)
    assert scheduler.waiting() == [0, 1]


def test_a_full_deep_batch_goes_first_and_a_thin_one_gathers_company() -> None:
    scheduler = scheduler_of(16, 2, 4)
    enter(scheduler, slots(*range(12)))
    scheduler.settle(run(scheduler), scores(0.1, 0.1, 0.9, 0.9), now=0.0)
    thin = run(scheduler)
    assert thin.stage == 0, "two survivors wait for more"
    scheduler.settle(thin, scores(0.1, 0.1, 0.9, 0.9), now=0.0)
    assert run(scheduler).stage == 1, "four of them are a full batch"


def test_of_thin_batches_the_fuller_goes_first_and_the_deeper_where_they_are_alike() -> None:
    for deep, shallow, first in ((8, 8, 1), (8, 9, 1), (8, 11, 0), (8, 0, 1)):
        scheduler = scheduler_of(64, 2, 16)
        enter(scheduler, slots(*range(deep)))
        scheduler.settle(run(scheduler), np.zeros(deep, dtype=np.float32), now=0.0)
        enter(scheduler, slots(*range(20, 20 + shallow)))
        assert run(scheduler).stage == first


def test_a_thin_deep_batch_is_not_passed_over_for_ever() -> None:
    scheduler = scheduler_of(100, 2, 4)
    enter(scheduler, slots(*range(100)))
    batch = run(scheduler)
    scheduler.settle(batch, scores(0.1, 0.9, 0.9, 0.9), now=0.0)
    stages = []
    for _ in range(PATIENCE + 1):
        batch = run(scheduler)
        stages.append(batch.stage)
        scheduler.settle(batch, np.ones(len(batch.slots), dtype=np.float32), now=0.0)
    assert stages == [0] * PATIENCE + [1]


def test_cancelling_frees_waiting_tickets_at_once_and_running_ones_after_their_batch() -> None:
    scheduler = scheduler_of(8, 2, 2)
    enter(scheduler, slots(0, 1, 2), request=1)
    enter(scheduler, slots(3), request=2)
    batch = run(scheduler)
    assert scheduler.cancel(1).tolist() == [2]
    assert scheduler.waiting() == [1, 0]
    settled = scheduler.settle(batch, scores(0.9, 0.1), now=0.0)
    assert settled.left.tolist() == []
    assert settled.cancelled == 2
    assert scheduler.cancel(1).tolist() == []
    assert run(scheduler).slots.tolist() == [3]


def test_cancelling_an_unknown_request() -> None:
    scheduler = scheduler_of(4, 2, 2)
    enter(scheduler, slots(0), request=1)
    assert scheduler.cancel(7).tolist() == []
    assert scheduler.waiting() == [1, 0]


def test_abandoning_a_batch_fails_its_requests_only() -> None:
    scheduler = scheduler_of(8, 2, 2)
    enter(scheduler, slots(0, 1, 2), request=1)
    enter(scheduler, slots(3), request=2)
    requests, freed = scheduler.abandon(run(scheduler))
    assert requests.tolist() == [1]
    assert sorted(freed.tolist()) == [0, 1, 2]
    assert run(scheduler).slots.tolist() == [3]


def test_nothing_more_comes_of_a_failed_request_from_another_batch_in_flight() -> None:
    scheduler = scheduler_of(8, 2, 2)
    enter(scheduler, slots(0, 1, 2), request=1)
    first, second = run(scheduler), run(scheduler)
    scheduler.abandon(first)
    settled = scheduler.settle(second, scores(0.9), now=0.0)
    assert settled.left.tolist() == []
    assert (settled.cancelled, settled.free.tolist()) == (1, [2])


def test_illegal_transitions_raise() -> None:
    scheduler = scheduler_of(4, 2, 2)
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
    never_run = Batch(0, slots(3), np.zeros(1), 0.0)
    with pytest.raises(RuntimeError, match="illegal transition"):
        scheduler.settle(never_run, scores(0.9), now=0.0)
    with pytest.raises(RuntimeError, match="illegal transition"):
        scheduler.abandon(never_run)
    assert run(scheduler).slots.tolist() == [1], "the refused events changed nothing"


def test_one_stage_only() -> None:
    scheduler = scheduler_of(2, 1, 2)
    enter(scheduler, slots(0, 1), thresholds=())
    assert scheduler.settle(run(scheduler), scores(0.0, 1.0), now=0.0).reasons.tolist() == [Reason.FINAL] * 2


def overdue(scheduler: Scheduler, now: float, free: float | None = None) -> list[tuple[int, int, Reason]]:
    """Slot, exit and reason of all overdue tickets when no batch can start before `free` (now)."""
    gone = scheduler.overdue(now, now if free is None else free)
    return [
        (slot, exit, Reason(reason)) for slot, exit, reason in zip(gone.slots, gone.exits, gone.reasons, strict=True)
    ]


def test_who_has_reached_no_exit_expires_when_the_deadline_has_passed_and_not_before() -> None:
    scheduler = scheduler_of(4, 2, 4, seconds=(100.0, 100.0))
    enter(scheduler, slots(0), min_exit=0, deadline=5.0)
    enter(scheduler, slots(1), min_exit=0)
    assert overdue(scheduler, 4.9) == [], "a late answer is better than none"
    assert overdue(scheduler, 5.0) == [(0, 0, Reason.EXPIRED)]
    assert run(scheduler, now=1e9).slots.tolist() == [1], "a ticket without a deadline waits for ever"


def test_who_has_an_exit_leaves_with_it_when_the_next_would_come_too_late() -> None:
    scheduler = scheduler_of(4, 3, 4, seconds=(1.0, 10.0, 10.0))
    enter(scheduler, slots(0), deadline=20.0)
    enter(scheduler, slots(1), deadline=25.0)
    scheduler.settle(run(scheduler), scores(0.1, 0.1), now=5.0)
    assert overdue(scheduler, 10.0) == [], "just in time"
    assert overdue(scheduler, 10.1) == [(0, 1, Reason.DEADLINE)]
    scheduler.settle(run(scheduler, now=10.1), scores(0.1), now=20.1)
    assert overdue(scheduler, 20.1) == [(1, 2, Reason.DEADLINE)]
    assert scheduler.waiting() == [0, 0, 0]


def test_the_batch_that_goes_first_counts_too() -> None:
    scheduler = scheduler_of(8, 2, 2, seconds=(10.0, 1.0))
    enter(scheduler, slots(0), deadline=15.0)
    scheduler.settle(run(scheduler), scores(0.1), now=8.0)
    assert overdue(deepcopy(scheduler), 8.0, free=14.0) == []
    assert overdue(scheduler, 8.0, free=18.0) == [(0, 1, Reason.DEADLINE)]


def test_min_exit_outranks_the_deadline() -> None:
    scheduler = scheduler_of(4, 3, 4)
    enter(scheduler, slots(0), min_exit=2, deadline=0.0)
    enter(scheduler, slots(1), min_exit=1, deadline=0.0)
    assert overdue(scheduler, 50.0) == [], "an answer was demanded"
    scheduler.settle(run(scheduler, now=50.0), scores(0.1, 0.1), now=51.0)
    assert overdue(scheduler, 51.0) == [(1, 1, Reason.DEADLINE)]
    scheduler.settle(run(scheduler, now=51.0), scores(0.1), now=52.0)
    assert overdue(scheduler, 52.0) == [(0, 2, Reason.DEADLINE)]


def test_who_runs_is_not_taken_out_of_its_batch() -> None:
    scheduler = scheduler_of(4, 2, 4)
    enter(scheduler, slots(0), min_exit=0, deadline=1.0)
    batch = run(scheduler)
    assert overdue(scheduler, 50.0) == []
    assert scheduler.settle(batch, scores(0.9), now=50.0).reasons.tolist() == [Reason.CONFIDENT]


def test_a_slot_used_again_has_no_deadline_of_the_ticket_before() -> None:
    scheduler = scheduler_of(1, 2, 1)
    enter(scheduler, slots(0), min_exit=0, deadline=1.0)
    assert len(overdue(scheduler, 2.0)) == 1
    enter(scheduler, slots(0), request=1, min_exit=0)
    assert overdue(scheduler, 3.0) == []


def sized(capacity: int, *seconds: tuple[float, ...]) -> Scheduler:
    """Stages that take so long in buckets of 1, 2 and 4."""
    times = LatencyModel((1, 2, 4), np.array(seconds))
    times.margin = 1.0
    return Scheduler(capacity, len(seconds), times)


def test_who_would_be_late_after_another_batch_overtakes_those_before() -> None:
    scheduler = scheduler_of(16, 2, 2, seconds=(10.0, 10.0))
    enter(scheduler, slots(0, 1, 2, 3))
    enter(scheduler, slots(4), request=1, deadline=19.0)
    assert run(scheduler).slots.tolist() == [0, 4]
    calm = scheduler_of(16, 2, 2, seconds=(1.0, 1.0))
    enter(calm, slots(0, 1, 2, 3))
    enter(calm, slots(4), request=1, deadline=19.0)
    assert run(calm).slots.tolist() == [0, 1], "there is time"


def test_a_short_slack_brings_a_deep_stage_forward() -> None:
    scheduler = scheduler_of(16, 2, 4, seconds=(10.0, 10.0))
    enter(scheduler, slots(0), deadline=25.0)
    scheduler.settle(run(scheduler), scores(0.1), now=10.0)
    enter(scheduler, slots(*range(1, 9)), request=1)
    assert (run(deepcopy(scheduler), now=0.0)).stage == 0, "a full batch first while there is time"
    assert run(scheduler, now=10.0).slots.tolist() == [0]


def test_a_batch_is_sized_to_the_tightest_deadline_aboard() -> None:
    scheduler = sized(16, (1.0, 2.0, 4.0))
    enter(scheduler, slots(0, 1, 2), thresholds=())
    enter(scheduler, slots(3), request=1, thresholds=(), deadline=3.0)
    batch = run(scheduler)
    assert (batch.slots.tolist(), batch.seconds) == ([0, 3], 2.0), "four would end at 4"
    assert run(scheduler).slots.tolist() == [1, 2]


def test_the_margin_is_part_of_every_prediction() -> None:
    times = LatencyModel((1, 2, 4), np.array([(1.0, 2.0, 4.0)]))
    times.margin = 1.5
    scheduler = Scheduler(16, 1, times)
    enter(scheduler, slots(0, 1, 2), thresholds=())
    enter(scheduler, slots(3), request=1, thresholds=(), deadline=2.9)
    assert run(scheduler).slots.tolist() == [3]


def test_tickets_that_are_late_already_delay_no_others() -> None:
    scheduler = scheduler_of(16, 1, 2, seconds=(10.0,))
    enter(scheduler, slots(0, 1), thresholds=())
    enter(scheduler, slots(2), request=1, thresholds=(), deadline=5.0)
    assert run(scheduler).slots.tolist() == [0, 1]


def test_deadlines_do_not_keep_the_oldest_waiting_for_ever() -> None:
    scheduler = scheduler_of(1000, 1, 1, seconds=(10.0,))
    enter(scheduler, slots(0), thresholds=())
    first = []
    for turn in range(PATIENCE + 1):
        enter(scheduler, slots(turn + 1), request=turn + 1, thresholds=(), deadline=15.0)
        batch = run(scheduler)
        first.append(batch.slots.tolist())
        scheduler.settle(batch, scores(0.0), now=0.0)
    assert first[:-1] == [[turn + 1] for turn in range(PATIENCE)]
    assert first[-1] == [0]


def leave_confident(scheduler: Scheduler, where: Slots, request: int = 0) -> Settled:
    """Tickets that leave at the first exit."""
    enter(scheduler, where, request)
    return scheduler.settle(run(scheduler), np.ones(len(where), dtype=np.float32), now=1.0)


def test_every_nth_of_the_confident_is_answered_and_its_slot_stays() -> None:
    scheduler = scheduler_of(16, 3, 4, shadow_every=3, reserve=8)
    settled = leave_confident(scheduler, slots(0, 1, 2, 3))
    assert settled.left.tolist() == [0, 1, 2, 3], "all are answered"
    assert settled.free.tolist() == [0, 1, 3]
    settled = leave_confident(scheduler, slots(4, 5, 6, 7), request=1)
    assert settled.free.tolist() == [4, 6, 7], "counted over all batches"
    assert scheduler.waiting() == [0, 0, 0], "shadows are in no ticket's queue"
    assert scheduler.oldest_since() == [np.inf] * 3


def test_who_leaves_for_another_reason_is_no_shadow() -> None:
    scheduler = scheduler_of(8, 2, 4, shadow_every=1, reserve=8)
    enter(scheduler, slots(0), max_exit=1)
    enter(scheduler, slots(1))
    assert scheduler.settle(run(scheduler), scores(0.1, 0.1), now=0.0).free.tolist() == [0]
    assert scheduler.settle(run(scheduler), scores(0.9), now=0.0).free.tolist() == [1]
    assert scheduler.idle()


def test_a_shadow_runs_to_the_last_stage_when_no_ticket_waits() -> None:
    scheduler = scheduler_of(8, 3, 2, shadow_every=2, reserve=2)
    leave_confident(scheduler, slots(0, 1))
    assert not scheduler.idle()
    enter(scheduler, slots(2), request=1, now=5.0)
    batch = run(scheduler, now=6.0)
    assert batch.slots.tolist() == [2], "requests first"
    assert scheduler.settle(batch, scores(0.1), now=6.0).left.tolist() == []
    batch = run(scheduler, now=7.0)
    assert (batch.stage, batch.slots.tolist()) == (1, [2])
    scheduler.settle(batch, scores(0.9), now=7.0)  # the second confident one: another shadow would be the fourth
    batch = run(scheduler, now=9.0)
    assert (batch.stage, batch.slots.tolist(), batch.waited.tolist()) == (1, [1], [8.0])
    settled = scheduler.settle(batch, scores(1.0), now=10.0)
    assert [settled.left.tolist(), settled.checked.tolist(), settled.free.tolist()] == [[], [], []], "it never leaves"
    settled = scheduler.settle(run(scheduler), scores(1.0), now=11.0)
    assert (settled.checked.tolist(), settled.left_at.tolist(), settled.free.tolist()) == ([0], [1], [1])
    assert settled.left.tolist() == []
    assert scheduler.idle()


def test_there_are_never_more_shadows_than_the_reserve() -> None:
    scheduler = scheduler_of(16, 2, 8, shadow_every=1, reserve=3)
    assert leave_confident(scheduler, slots(0, 1, 2, 3, 4)).free.tolist() == [3, 4]
    assert leave_confident(scheduler, slots(5), request=1).free.tolist() == [5]
    scheduler.settle(run(scheduler), scores(1.0, 1.0, 1.0), now=2.0)
    for number, slot in enumerate((8, 9, 10), 2):
        assert leave_confident(scheduler, slots(slot), request=number).free.tolist() == [], "there is room again"


def test_shadows_that_run_count_too() -> None:
    scheduler = scheduler_of(8, 2, 4, shadow_every=1, reserve=2)
    leave_confident(scheduler, slots(0, 1))
    in_flight = run(scheduler)
    assert leave_confident(scheduler, slots(2), request=1).free.tolist() == [2]
    assert scheduler.settle(in_flight, scores(1.0, 1.0), now=2.0).checked.tolist() == [0, 1]


def test_shadows_make_no_larger_batches_than_others() -> None:
    scheduler = scheduler_of(8, 2, 2, shadow_every=1, reserve=8)
    leave_confident(scheduler, slots(0, 1))
    leave_confident(scheduler, slots(2), request=1)
    assert sorted(len(run(scheduler).slots) for _ in range(2)) == [1, 2]


def test_a_shadow_is_bound_by_nothing_its_request_said() -> None:
    scheduler = scheduler_of(8, 3, 4, shadow_every=1, reserve=2)
    enter(scheduler, slots(0), thresholds=(0.0, 0.0), max_exit=1, deadline=2.0)
    assert scheduler.settle(run(scheduler), scores(0.5), now=1.0).free.tolist() == []
    assert overdue(scheduler, 9.0) == []
    assert scheduler.settle(run(scheduler), scores(1.0), now=9.0).free.tolist() == []
    assert scheduler.settle(run(scheduler), scores(0.0), now=9.0).checked.tolist() == [0]


def test_no_reserve_or_no_share_is_no_shadow() -> None:
    for scheduler in (scheduler_of(4, 2, 4, shadow_every=1), scheduler_of(4, 2, 4, reserve=4)):
        assert leave_confident(scheduler, slots(0, 1)).free.tolist() == [0, 1]
        assert scheduler.idle()


def test_a_shadow_cannot_be_cancelled_and_fails_no_request() -> None:
    scheduler = scheduler_of(8, 3, 4, shadow_every=1, reserve=2)
    enter(scheduler, slots(0, 1), request=7)
    scheduler.settle(run(scheduler), scores(1.0, 0.1), now=0.0)
    assert scheduler.cancel(7).tolist() == [1], "its company goes, the shadow stays"
    batch = run(scheduler)
    assert batch.slots.tolist() == [0]
    assert scheduler.settle(batch, scores(0.1), now=0.0).cancelled == 0
    requests, freed = scheduler.abandon(run(scheduler))
    assert (requests.tolist(), freed.tolist()) == ([], [0])
    assert scheduler.idle()


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
    unwanted: bool = field(default=False)
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
        """Whatever happened: what is left runs to its end, everyone ended once, and every slot is free."""
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
