"""The engine core by hand, one batch at a time, without its thread."""

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.core import MAX_FAILURES, EngineCore, warmed
from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Cancelled,
    CancelRange,
    ExitParameters,
    Failed,
    Invalid,
    Load,
    Outbound,
    Ran,
    Shadowed,
    Submit,
)
from tests.fakes import FakeBackend, picture, pictures

Pixels = NDArray[np.uint8]
LONG, SOON = 1000.0, 500.0
"""Seconds a stage is said to take, and a deadline before its end."""


class ByHand:
    """A core on a fake backend, and all it says. `seconds` is how long every batch is thought to take."""

    in_flight = 1

    def __init__(
        self, *, seconds: float = 0.0, capacity: int = 64, max_batch: int = 64, reserve: int = 0, **options: Any
    ) -> None:
        self.backend = FakeBackend(capacity=capacity + reserve, max_batch=max_batch, in_flight=self.in_flight)
        self.said: list[Outbound] = []
        known = np.full((3, len(self.backend.buckets)), seconds)
        self.core = EngineCore(self.backend, self.said.append, seconds=known, reserve=reserve, **options)

    def submit(
        self, request: int, pixels: Pixels, *, after: float = np.inf, low: int = 0, stream: bool = False
    ) -> None:
        """Thresholds of 0.5, a deadline `after` seconds."""
        now = time.monotonic()
        self.core.receive(
            Submit(request, pixels, ExitParameters(np.array([0.5, 0.5]), low, 3, now + after, stream), now)
        )

    def run(self) -> None:
        """Until nothing is left to run."""
        while not self.core.idle:
            self.core.run_once()

    def told(self) -> list[tuple[int, int, int, Reason]]:
        """Request, index, exit and reason of all that was said of tickets."""
        return [
            (int(a.request[i]), int(a.index[i]), int(a.exit[i]), Reason(a.reason[i]))
            for a in self.of(Answers)
            for i in range(len(a.request))
        ]

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]


@pytest.fixture(autouse=True, params=[1, 2])
def in_flight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every test with one batch at a time and with two."""
    monkeypatch.setattr(ByHand, "in_flight", request.param)
    return int(request.param)


def test_an_expired_ticket_is_answered_and_never_run() -> None:
    hand = ByHand()
    hand.submit(1, pictures(2, 1.0), after=-1.0)
    hand.submit(2, pictures(1, 1.0), after=-1.0, low=1)
    hand.run()
    assert sorted(hand.told()) == [(1, 0, 0, Reason.EXPIRED), (1, 1, 0, Reason.EXPIRED), (2, 0, 1, Reason.CONFIDENT)]
    assert hand.backend.batches == [(0, 1)]
    assert hand.backend.taken == 0


def test_between_stages_the_best_exit_so_far_is_the_answer() -> None:
    hand = ByHand(seconds=LONG)
    hand.submit(1, pictures(1, 0.4, 0.9, label=(2, 3)), after=SOON)
    hand.submit(2, pictures(1, 0.4, 0.9, label=(2, 3)), after=SOON, low=2)
    hand.run()
    assert hand.told() == [(1, 0, 1, Reason.DEADLINE), (2, 0, 2, Reason.CONFIDENT)]
    cut, late = hand.of(Answers)
    assert cut.probabilities[0].tolist() == pytest.approx([0.2, 0.2, 0.4, 0.2])
    assert cut.history["class_id"][0, 0] == 2
    assert cut.history["score"][0, 0] == pytest.approx(0.4)
    assert late.probabilities[0].argmax() == 3
    assert hand.backend.taken == 0


def test_measured_times_decide_which_tickets_wait() -> None:
    """Stages that turn out quick are waited for after a while, though they were thought to be slow."""
    hand = ByHand(seconds=LONG)
    for request in range(200):
        hand.submit(request, pictures(1, 0.2, 0.9), low=2 if request < 150 else 0, after=SOON)
        hand.run()
    exits = [exit for _, _, exit, _ in hand.told()]
    assert exits[-1] == 2
    assert hand.core.latency.predict(1, 1) < 1.0


def test_streams_get_every_exit_and_the_others_the_last() -> None:
    hand = ByHand()
    hand.submit(1, np.stack([picture(0.2, 0.2, 0.2), picture(1.0)]), stream=True)
    hand.submit(2, pictures(1, 0.2, 0.9))
    hand.run()
    assert [line for line in hand.told() if line[0] == 1] == [
        (1, 0, 1, Reason.GOES_ON),
        (1, 1, 1, Reason.CONFIDENT),
        (1, 0, 2, Reason.GOES_ON),
        (1, 0, 3, Reason.FINAL),
    ]
    assert [line for line in hand.told() if line[0] == 2] == [(2, 0, 2, Reason.CONFIDENT)]


def test_a_streams_deadline_says_its_last_exit_again_with_the_reason() -> None:
    hand = ByHand(seconds=LONG)
    hand.submit(1, pictures(1, 0.2), stream=True, after=SOON)
    hand.run()
    assert hand.told() == [(1, 0, 1, Reason.GOES_ON), (1, 0, 1, Reason.DEADLINE)]


def test_cancelled_images_are_counted_in_the_queue_and_in_the_batch() -> None:
    hand = ByHand()
    hand.submit(1, pictures(5, 0.2))
    hand.core.receive(Cancel(1))
    assert hand.of(Cancelled) == [Cancelled("queue", 5)]
    # As with batches in flight while messages come in.
    hand.backend.fail = lambda stage, pixels: hand.core.receive(Cancel(2))
    hand.submit(2, pictures(3, 0.2))
    hand.run()
    assert sum(message.images for message in hand.of(Cancelled) if message.where == "batch") == 3
    assert sum(message.images for message in hand.of(Cancelled) if message.where == "queue") == 5
    assert hand.told() == []
    assert hand.backend.taken == 0


def test_all_images_of_whoever_has_left_are_cancelled_and_no_others() -> None:
    hand = ByHand(max_batch=2)
    for request in (9, 10, 11, 19, 20):
        hand.submit(request, pictures(1, 0.1, 0.1, 0.1))
    hand.core.run_once()
    hand.core.receive(CancelRange(10, 20))
    hand.run()
    assert sorted({line[0] for line in hand.told()}) == [9, 20]
    assert sum(message.images for message in hand.of(Cancelled)) == 3
    assert hand.backend.taken == 0


def test_shadows_say_whether_the_last_exit_agrees() -> None:
    hand = ByHand(shadow_every=1, reserve=8)
    images = [picture(1.0, 1.0, 1.0, label=1), picture(1.0, 1.0, 1.0, label=(1, 1, 2)), picture(0.2, 1.0, 0.4, label=3)]
    hand.submit(1, np.stack(images))
    hand.run()
    answered = hand.told()
    assert [(index, exit) for _, index, exit, _ in answered] == [(0, 1), (1, 1), (2, 2)], "each once"
    agreed = sorted(
        (exit, agrees)
        for shadowed in hand.of(Shadowed)
        for exit, agrees in zip(shadowed.exit.tolist(), shadowed.agreed.tolist(), strict=True)
    )
    assert agreed == [(1, False), (1, True), (2, True)]
    assert hand.backend.taken == 0


def test_a_streams_shadow_is_silent() -> None:
    hand = ByHand(shadow_every=1, reserve=8)
    hand.submit(1, pictures(1, 1.0, 0.2, 0.2), stream=True)
    hand.run()
    assert hand.told() == [(1, 0, 1, Reason.CONFIDENT)]
    assert hand.backend.batches == [(0, 1), (1, 1), (2, 1)]
    assert hand.backend.taken == 0


def test_shadows_leave_the_whole_capacity_to_requests() -> None:
    hand = ByHand(shadow_every=1, capacity=4, reserve=2)
    hand.submit(1, pictures(4, 1.0))
    hand.core.run_once()
    assert hand.backend.taken == 2, "kept as shadows"
    hand.submit(2, pictures(4, 0.2, 1.0))
    hand.run()
    assert hand.of(Failed) == []
    assert [request for request, *_ in hand.told()] == [1] * 4 + [2] * 4
    assert hand.backend.taken == 0


def test_a_shadows_failure_fails_no_request() -> None:
    hand = ByHand(shadow_every=1, reserve=2)
    hand.submit(1, pictures(1, 1.0))
    hand.core.run_once()

    def broken(stage: int, pixels: Pixels) -> None:
        raise ZeroDivisionError

    hand.backend.fail = broken
    hand.run()
    assert [message.requests.tolist() for message in hand.of(Failed)] == [[]]
    assert hand.told() == [(1, 0, 1, Reason.CONFIDENT)]
    assert hand.backend.taken == 0


def test_shadow_batches_are_reported_as_the_others_are() -> None:
    hand = ByHand(shadow_every=1, reserve=2)
    hand.submit(1, pictures(2, 1.0))
    hand.run()
    assert [(ran.stage, ran.images) for ran in hand.of(Ran)] == hand.backend.batches == [(0, 2), (1, 2), (2, 2)]


def test_the_load_is_published_before_every_batch_and_when_nothing_is_left(in_flight: int) -> None:
    published: list[list[int]] = []
    ran: list[tuple[int, int]] = []
    hand = ByHand(capacity=66, publish=lambda load: published.append(list(load.queued)))
    hand.backend.fail = lambda stage, pixels: ran.append((stage, len(pixels)))
    hand.submit(1, pictures(66, 0.2, 1.0))
    hand.run()
    hand.core.run_once()
    if in_flight == 1:
        assert ran == [(0, 64), (1, 64), (0, 2), (1, 2)], "a full batch first"
        assert published == [[2, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    else:
        assert ran == [(0, 64), (0, 2), (1, 64), (1, 2)], "the other two run at the same time"
        assert published == [[2, 0, 0]] + [[0, 0, 0]] * 5


def test_as_many_batches_are_launched_as_the_device_takes_and_no_slot_twice(in_flight: int) -> None:
    hand = ByHand(max_batch=4)
    launched: list[set[int]] = []
    most = 0
    launch, collect = hand.backend.launch, hand.backend.collect

    def launching(stage: int, slots: NDArray[np.int64]) -> Any:
        nonlocal most
        assert not any(set(slots.tolist()) & others for others in launched), "a slot is in two batches"
        launched.append(set(slots.tolist()))
        most = max(most, len(launched))
        return launch(stage, slots)

    def collecting(handle: Any) -> Any:
        assert set(handle.slots.tolist()) == launched.pop(0), "the oldest first"
        return collect(handle)

    hand.backend.launch, hand.backend.collect = launching, collecting  # type: ignore[method-assign]
    hand.submit(1, pictures(10, 0.2, 0.2))
    hand.submit(2, pictures(6, 0.2, 0.9))
    hand.run()
    assert most == in_flight
    assert sorted(line[:3] for line in hand.told()) == [(1, i, 3) for i in range(10)] + [(2, i, 2) for i in range(6)]
    assert hand.backend.taken == 0


def test_a_failure_takes_its_requests_out_of_the_other_batch_too(in_flight: int) -> None:
    hand = ByHand(max_batch=2)
    failures = 0

    def once(stage: int, pixels: Pixels) -> None:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise ZeroDivisionError

    hand.backend.fail = once
    hand.submit(1, pictures(3, 1.0))
    hand.submit(2, pictures(1, 1.0))
    hand.run()
    assert [message.requests.tolist() for message in hand.of(Failed)] == [[1]]
    assert hand.told() == [(2, 0, 1, Reason.CONFIDENT)]
    assert sum(message.images for message in hand.of(Cancelled)) == (1 if in_flight == 2 else 0)
    assert hand.backend.taken == 0


def test_load_says_what_waits_and_what_it_will_take() -> None:
    hand = ByHand(seconds=6.4)
    hand.submit(1, pictures(2, 0.2, 1.0))
    load = hand.core.load()
    assert (list(load.queued), load.work_seconds) == ([2, 0, 0], 0.0)
    assert (load.seconds_per_image, load.backlog_seconds) == pytest.approx((0.3, 0.6)), "0.1 a stage in batches of 64"
    assert np.isfinite(load.oldest).tolist() == [True, False, False]
    hand.run()
    after = hand.core.load()
    assert after.backlog_seconds == 0.0
    assert after.work_seconds == pytest.approx(0.4, rel=0.2), "two images through two stages"
    assert after.prediction_margin >= 1.0


def test_what_the_host_does_between_batches_is_part_of_what_they_take(in_flight: int) -> None:
    """A clock that ticks by one each time it is read: at the arrival, when a batch is looked for, and at the end."""
    clock = iter(range(1000))
    hand = ByHand(max_batch=1, seconds=1.0, clock=lambda: float(next(clock)))
    for request in range(50):
        hand.core.receive(Submit(request, pictures(1, 1.0), ExitParameters(np.array([0.5, 0.5]), 1, 3), 0.0))
        hand.run()
    alone = hand.core.latency.predict(0, 1)
    assert alone == pytest.approx(1 + in_flight, rel=0.1), "from the arrival on, as the core was idle"


def test_batches_in_flight_count_for_a_deadline(in_flight: int) -> None:
    """The second request's batch is on the device and thought to be long when the first might go on."""
    hand = ByHand(seconds=LONG, max_batch=1)
    hand.submit(1, pictures(1, 0.2, 1.0), after=1.5 * LONG)
    hand.submit(2, pictures(1, 1.0))
    hand.run()
    assert (1, 0, 1, Reason.DEADLINE) in hand.told() if in_flight == 2 else (1, 0, 2, Reason.CONFIDENT) in hand.told()


def test_a_request_the_backend_has_no_slots_for_fails_alone() -> None:
    hand = ByHand(capacity=8)
    hand.submit(1, pictures(8, 1.0))
    hand.submit(2, pictures(1, 1.0))
    (failed,) = hand.of(Failed)
    assert (failed.requests.tolist(), failed.shed, failed.detail) == ([2], 1, "the service is full")
    hand.run()
    assert [line[:2] for line in hand.told()] == [(1, index) for index in range(8)]
    assert len(hand.of(Failed)) == 1
    assert hand.backend.taken == 0


def test_a_device_that_takes_no_image_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits then, so no batch would ever show it."""
    hand = ByHand()

    def broken(pixels: Pixels) -> None:
        raise DeviceError("poisoned")

    monkeypatch.setattr(hand.backend, "admit", broken)
    for request in range(MAX_FAILURES - 1):
        hand.submit(request, pictures(1, 1.0))
    with pytest.raises(DeviceError, match="in a row"):
        hand.submit(MAX_FAILURES, pictures(1, 1.0))
    assert [message.requests.tolist() for message in hand.of(Failed)] == [[0], [1], [3]], "each request fails"


def test_requests_beyond_the_slots_are_no_sign_of_a_broken_device() -> None:
    hand = ByHand(capacity=2)
    for request in range(2 * MAX_FAILURES):
        hand.submit(request, pictures(3, 1.0))
    assert [message.shed for message in hand.of(Failed)] == [3] * 2 * MAX_FAILURES


def test_a_batch_that_lands_ends_the_count_of_failures() -> None:
    hand = ByHand(capacity=2)

    def broken_by_label_3(stage: int, pixels: Pixels) -> None:
        if (pixels[:, 1, 0, 1] == 3).any():
            raise DeviceError("no")

    hand.backend.fail = broken_by_label_3
    for request in range(0, 4 * MAX_FAILURES, 2):
        hand.submit(request, pictures(2, 1.0, label=3))
        hand.run()
        hand.submit(request + 1, pictures(2, 1.0))
        hand.run()
    assert len(hand.of(Failed)) == 2 * MAX_FAILURES
    assert hand.backend.taken == 0


def test_the_permits_of_cancelled_images_are_free_for_others_though_their_batch_is_in_flight(in_flight: int) -> None:
    hand = ByHand(capacity=4, max_batch=2)
    hand.submit(1, pictures(4, 0.2, 0.2, 0.2))
    hand.core.run_once()
    hand.core.receive(Cancel(1))
    hand.submit(2, pictures(4, 1.0))
    assert hand.backend.taken == 4, f"{in_flight} in flight"
    hand.run()
    assert hand.of(Failed) == []
    assert [line[:2] for line in hand.told()] == [(2, index) for index in range(4)]
    assert hand.backend.taken == 0


def test_a_running_batch_is_backlog_until_it_ends() -> None:
    loads: list[Load] = []
    hand = ByHand(seconds=6.4, publish=loads.append)
    hand.submit(1, pictures(2, 0.2, 1.0))
    hand.run()
    first, last = loads[0], loads[-1]
    assert first.queued == (0, 0, 0)
    assert first.backlog_seconds == pytest.approx(6.4 * 1.1 + 2 * 0.2), "the batch, with the margin, and two stages"
    assert last.backlog_seconds == 0.0


def spoils(hand: ByHand, label: int) -> None:
    """Images of this label get a score that is no number."""
    collect = hand.backend.collect

    def spoilt(handle: Any) -> Any:
        labels = hand.backend._pixels[handle.slots, 1, handle.stage, 1]
        output = collect(handle)
        output.score[labels == label] = np.nan
        return output

    hand.backend.collect = spoilt  # type: ignore[method-assign]


def test_images_without_a_valid_score_fail_with_their_requests_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    hand = ByHand(max_batch=8)
    spoils(hand, 3)
    hand.submit(1, np.stack([picture(0.2, 1.0, label=1), picture(0.2, 1.0, label=(1, 3)), picture(1.0)]))
    hand.submit(2, np.stack([picture(0.2, 1.0, label=1), picture(1.0)]))
    hand.submit(3, np.stack([picture(1.0, label=1), picture(0.2, label=3)]))
    hand.run()
    assert sorted(message.requests.tolist() for message in hand.of(Failed)) == [[1], [3]]
    assert sum(message.images for message in hand.of(Invalid)) == 2
    assert sorted(line for line in hand.told() if line[0] == 2) == [
        (2, 0, 2, Reason.CONFIDENT),
        (2, 1, 1, Reason.CONFIDENT),
    ]
    assert all(np.isfinite(answers.probabilities).all() for answers in hand.of(Answers))
    assert hand.backend.taken == 0
    assert caplog.text.count("scores that are not numbers") == 1, "once"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_confidence_that_is_no_number_is_as_bad(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = ByHand()
    collect = hand.backend.collect

    def spoilt(handle: Any) -> Any:
        output = collect(handle)
        output.probabilities[0] = wrong
        return output

    monkeypatch.setattr(hand.backend, "collect", spoilt)
    hand.submit(1, pictures(1, 1.0))
    hand.submit(2, pictures(1, 0.0, 0.0, 0.0))
    hand.core.run_once()
    assert [message.requests.tolist() for message in hand.of(Failed)] == [[1]]


def test_where_even_one_image_takes_too_long_it_serves_single_images_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend, seconds = warmed(lambda: FakeBackend(max_batch=8, every_bucket=True), most=0.0)
    assert (backend.buckets, seconds.shape) == ((1,), (3, 1))
    [line] = caplog.messages
    assert line.endswith("at most 0 ms are meant: serve with --engine process")
    caplog.clear()
    backend, seconds = warmed(lambda: FakeBackend(max_batch=8, every_bucket=True), most=60.0)
    assert (backend.buckets[-1], caplog.messages) == (8, [])
