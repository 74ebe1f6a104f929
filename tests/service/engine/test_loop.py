"""The loop by hand, one batch at a time, without its thread."""

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.exits import Reason
from service.engine.loop import Loop
from service.engine.messages import Answers, Cancel, Cancelled, Failed, Outbound, Ran, Shadowed, Submit, Terms
from tests.fakes import FakeBackend, picture, pictures

Pixels = NDArray[np.uint8]
LONG, SOON = 1000.0, 500.0
"""Seconds a stage is said to take, and a deadline before its end."""


class ByHand:
    """A loop on a fake backend, and all it says. `seconds` is how long every batch is thought to take."""

    def __init__(self, *, seconds: float = 0.0, capacity: int = 64, reserve: int = 0, **options: Any) -> None:
        self.backend = FakeBackend(capacity=capacity + reserve, max_batch=64)
        self.said: list[Outbound] = []
        known = np.full((3, len(self.backend.buckets)), seconds)
        self.loop = Loop(self.backend, self.said.append, seconds=known, reserve=reserve, **options)

    def submit(
        self, request: int, pixels: Pixels, *, after: float = np.inf, low: int = 0, stream: bool = False
    ) -> None:
        """Thresholds of 0.5, a deadline `after` seconds."""
        now = time.monotonic()
        self.loop.receive(Submit(request, pixels, Terms(np.array([0.5, 0.5]), low, 3, now + after, stream), now))

    def run(self) -> None:
        """Until nothing is left to run."""
        while not self.loop.scheduler.idle():
            self.loop.run_once()

    def told(self) -> list[tuple[int, int, int, Reason]]:
        """Request, index, exit and reason of all that was said of tickets."""
        return [
            (int(a.request[i]), int(a.index[i]), int(a.exit[i]), Reason(a.reason[i]))
            for a in self.of(Answers)
            for i in range(len(a.request))
        ]

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]


def test_an_expired_ticket_is_told_so_and_runs_nowhere() -> None:
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
    assert cut.history.class_id[0, 0] == 2
    assert cut.history.score[0, 0] == pytest.approx(0.4)
    assert late.probabilities[0].argmax() == 3
    assert hand.backend.taken == 0


def test_what_was_measured_decides_who_waits() -> None:
    """Stages that turn out quick are waited for after a while, though they were thought to be slow."""
    hand = ByHand(seconds=LONG)
    for request in range(200):
        hand.submit(request, pictures(1, 0.2, 0.9), low=2 if request < 150 else 0, after=SOON)
        hand.run()
    exits = [exit for _, _, exit, _ in hand.told()]
    assert exits[-1] == 2
    assert hand.loop.times.predict(1, 1) < 1.0
    assert hand.loop.times.predict(1, 64) == LONG, "nobody ran those"


def test_streams_are_told_of_every_exit_and_the_others_of_the_last() -> None:
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


def test_the_cancelled_are_counted_in_the_queue_and_in_the_batch() -> None:
    hand = ByHand()
    hand.submit(1, pictures(5, 0.2))
    hand.loop.receive(Cancel(1))
    assert hand.of(Cancelled) == [Cancelled("queue", 5)]
    # As with batches in flight while messages come in.
    hand.backend.fail = lambda stage, pixels: hand.loop.receive(Cancel(2))
    hand.submit(2, pictures(3, 0.2))
    hand.run()
    assert sum(message.images for message in hand.of(Cancelled) if message.where == "batch") == 3
    assert sum(message.images for message in hand.of(Cancelled) if message.where == "queue") == 5
    assert hand.told() == []
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
    hand.loop.run_once()
    assert hand.backend.taken == 2, "kept as shadows"
    hand.submit(2, pictures(4, 0.2, 1.0))
    hand.run()
    assert hand.of(Failed) == []
    assert [request for request, *_ in hand.told()] == [1] * 4 + [2] * 4
    assert hand.backend.taken == 0


def test_a_shadows_failure_is_nobodys() -> None:
    hand = ByHand(shadow_every=1, reserve=2)
    hand.submit(1, pictures(1, 1.0))
    hand.loop.run_once()

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


def test_who_waits_is_published_before_every_batch_and_when_nothing_is_left() -> None:
    published: list[list[int]] = []
    ran: list[tuple[int, int]] = []
    hand = ByHand(capacity=66, publish=lambda load: published.append(load.queued.tolist()))
    hand.backend.fail = lambda stage, pixels: ran.append((stage, len(pixels)))
    hand.submit(1, pictures(66, 0.2, 1.0))
    hand.run()
    hand.loop.run_once()
    assert ran == [(0, 64), (1, 64), (0, 2), (1, 2)], "a full batch first"
    assert published == [[2, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
