"""The scheduler by hand; `test_scheduler_replay` has it under random events."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pytest

from msmlp.model.backends.protocol import buckets_up_to
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.latency import PATIENCE, LatencyModel
from msmlp.service.engine.scheduler import Batch, Scheduler, Settled
from msmlp.service.engine.tickets import Slots
from tests.service.engine.tickets import enter, scores, slots


def scheduler_of(
    capacity: int, stages: int, max_batch: int, *, seconds: Sequence[float] | None = None, **options: int
) -> Scheduler:
    """Every batch of a stage takes its `seconds` (1), whatever its size: the fuller the better."""
    buckets = buckets_up_to(max_batch)
    each = np.array(seconds if seconds is not None else [1.0] * stages)
    times = LatencyModel(buckets, np.repeat(each[:, None], len(buckets), axis=1))
    times.margin = 1.0
    return Scheduler(capacity, stages, times, **options)


def run(scheduler: Scheduler, now: float = 0.0) -> Batch:
    batch = scheduler.next_batch(now)
    assert batch is not None
    return batch


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


def test_confident_tickets_leave_and_the_others_wait_for_the_next_stage() -> None:
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


def test_with_one_stage_every_exit_is_the_final_one() -> None:
    scheduler = scheduler_of(2, 1, 2)
    enter(scheduler, slots(0, 1), thresholds=())
    assert scheduler.settle(run(scheduler), scores(0.0, 1.0), now=0.0).reasons.tolist() == [Reason.FINAL] * 2


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


def test_a_full_deep_batch_goes_first_and_a_thin_one_waits_for_more() -> None:
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


def test_a_thin_deep_batch_is_not_passed_over_forever() -> None:
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


def test_cancelling_a_range_of_requests_leaves_its_neighbours() -> None:
    scheduler = scheduler_of(8, 2, 2)
    for slot, request in enumerate([4, 5, 7, 8]):
        enter(scheduler, slots(slot), request=request)
    assert scheduler.free == 4
    batch = run(scheduler)
    assert scheduler.cancel_range(5, 8).tolist() == [2]
    settled = scheduler.settle(batch, scores(0.9, 0.9), now=0.0)
    assert (settled.left.tolist(), settled.cancelled) == ([0], 1)
    assert scheduler.waiting() == [1, 0]
    assert scheduler.free == 7


def test_cancelling_an_unknown_request_frees_nothing() -> None:
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


def overdue(scheduler: Scheduler, now: float, free: float | None = None) -> list[tuple[int, int, Reason]]:
    """Slot, exit and reason of all overdue tickets when no batch can start before `free` (now)."""
    gone = scheduler.overdue(now, now if free is None else free)
    return [
        (slot, exit, Reason(reason)) for slot, exit, reason in zip(gone.slots, gone.exits, gone.reasons, strict=True)
    ]


def test_a_ticket_without_an_exit_expires_at_its_deadline_and_not_before() -> None:
    scheduler = scheduler_of(4, 2, 4, seconds=(100.0, 100.0))
    enter(scheduler, slots(0), min_exit=0, deadline=5.0)
    enter(scheduler, slots(1), min_exit=0)
    assert overdue(scheduler, 4.9) == [], "a late answer is better than none"
    assert overdue(scheduler, 5.0) == [(0, 0, Reason.EXPIRED)]
    assert run(scheduler, now=1e9).slots.tolist() == [1], "a ticket without a deadline waits forever"


def test_a_ticket_with_an_exit_leaves_with_it_when_the_next_would_come_too_late() -> None:
    scheduler = scheduler_of(4, 3, 4, seconds=(1.0, 10.0, 10.0))
    enter(scheduler, slots(0), deadline=20.0)
    enter(scheduler, slots(1), deadline=25.0)
    scheduler.settle(run(scheduler), scores(0.1, 0.1), now=5.0)
    assert overdue(scheduler, 10.0) == [], "just in time"
    assert overdue(scheduler, 10.1) == [(0, 1, Reason.DEADLINE)]
    scheduler.settle(run(scheduler, now=10.1), scores(0.1), now=20.1)
    assert overdue(scheduler, 20.1) == [(1, 2, Reason.DEADLINE)]
    assert scheduler.waiting() == [0, 0, 0]


def test_a_deadline_takes_no_running_ticket_out_of_its_batch() -> None:
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


def sized(capacity: int, *seconds: tuple[float, ...]) -> Scheduler:
    """Stages that take so long in buckets of 1, 2 and 4."""
    times = LatencyModel((1, 2, 4), np.array(seconds))
    times.margin = 1.0
    return Scheduler(capacity, len(seconds), times)


def test_a_ticket_that_would_be_late_after_another_batch_overtakes_earlier_ones() -> None:
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


def test_a_batch_is_sized_to_its_tightest_deadline() -> None:
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


def test_deadlines_do_not_keep_the_oldest_waiting_forever() -> None:
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


def test_tickets_that_leave_for_another_reason_become_no_shadows() -> None:
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


def test_running_shadows_count_against_the_reserve() -> None:
    scheduler = scheduler_of(8, 2, 4, shadow_every=1, reserve=2)
    leave_confident(scheduler, slots(0, 1))
    in_flight = run(scheduler)
    assert leave_confident(scheduler, slots(2), request=1).free.tolist() == [2]
    assert scheduler.settle(in_flight, scores(1.0, 1.0), now=2.0).checked.tolist() == [0, 1]


def test_without_a_reserve_or_a_share_there_are_no_shadows() -> None:
    for scheduler in (scheduler_of(4, 2, 4, shadow_every=1), scheduler_of(4, 2, 4, reserve=4)):
        assert leave_confident(scheduler, slots(0, 1)).free.tolist() == [0, 1]
        assert scheduler.idle()


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


def test_a_shadow_cannot_be_cancelled_and_fails_no_request() -> None:
    scheduler = scheduler_of(8, 3, 4, shadow_every=1, reserve=2)
    enter(scheduler, slots(0, 1), request=7)
    scheduler.settle(run(scheduler), scores(1.0, 0.1), now=0.0)
    assert scheduler.cancel(7).tolist() == [1], "the other ticket goes, the shadow stays"
    batch = run(scheduler)
    assert batch.slots.tolist() == [0]
    assert scheduler.settle(batch, scores(0.1), now=0.0).cancelled == 0
    requests, freed = scheduler.abandon(run(scheduler))
    assert (requests.tolist(), freed.tolist()) == ([], [0])
    assert scheduler.idle()
