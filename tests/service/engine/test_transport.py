"""The engine inline, as a thread and as a process under the same tests, then some of them alone."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.errors import OutOfMemoryError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine import transport
from msmlp.service.engine.core import MAX_FAILURES, SHADOW_SLOTS, run
from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Cancelled,
    Counts,
    Died,
    ExitParameters,
    Failed,
    Inbound,
    Load,
    Outbound,
    Ran,
    Ready,
    Stop,
    Submit,
)
from msmlp.service.engine.transport import MOST_SECONDS, InlineWorker, ThreadWorker, Worker
from tests.engines import BROKEN, OWN_REQUEST, Build, Talk, inline, no_device, process_on_loop, thread
from tests.fakes import PATIENCE_SECONDS, FakeBackend, Pixels, picture, pictures

MAKERS = {"inline": inline, "thread": thread, "process": process_on_loop}
LOCAL = {"inline": inline, "thread": thread}
"""Those in this process, where a test can see the backend."""


@pytest.fixture(scope="module", params=MAKERS)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[Talk, Build]]:
    """One of each for all tests here: the process has room for 12 images in its ring, fewer than the tests send."""
    build = Build(capacity=64)
    more = {"ring_images": 12} if request.param == "process" else {}
    talk = Talk(MAKERS[request.param], build, permits=64, **more)
    ready = talk.hear(Ready)
    assert (ready.backend, ready.permits) == ("fake", 64)
    assert talk.worker.ready.is_set()
    yield talk, build
    talk.worker.put(Stop())
    talk.worker.join(PATIENCE_SECONDS)
    assert talk.hear(Died) == Died("stopped")
    assert not talk.worker.ready.is_set()
    assert talk.worker.load is None


def test_an_answer_says_where_why_and_what_every_stage_said(engine: tuple[Talk, Build]) -> None:
    talk, _ = engine
    talk.submit(7, np.stack([picture(1.0, label=2), picture(0.2, 0.8, label=3), picture(0.2, 0.2, 0.4, label=1)]))
    for index, (exit, reason, label) in enumerate(
        [(1, Reason.CONFIDENT, 2), (2, Reason.CONFIDENT, 3), (3, Reason.FINAL, 1)]
    ):
        answer = talk.hear(Answers)
        assert (answer.request.tolist(), answer.index.tolist()) == ([7], [index])
        assert (answer.exit[0], answer.reason[0]) == (exit, reason)
        assert answer.probabilities[0].argmax() == answer.history["class_id"][0, exit - 1] == label
    assert answer.history["score"][0].tolist() == pytest.approx([0.2, 0.2, 0.4])
    assert answer.history["batch_size"][0].tolist() == [3, 2, 1]
    for name in ("queue_seconds", "compute_seconds"):
        assert (answer.history[name] >= 0).all()


def test_requests_that_wait_together_leave_together(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        for request in range(10):
            talk.submit(request, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [OWN_REQUEST]
    assert talk.hear(Answers).request.tolist() == list(range(10))


def test_pixels_are_those_of_their_request_when_the_ring_is_used_again_and_again(engine: tuple[Talk, Build]) -> None:
    talk, _ = engine
    sizes, labels = [5, 12, 1, 7, 12, 3, 10, 8], [0, 1, 0, 1, 1, 0, 0, 1]
    for request, (images, label) in enumerate(zip(sizes, labels, strict=True)):
        talk.submit(request, pictures(images, 0.6 + 0.04 * request, label=label))
    seen: dict[int, int] = dict.fromkeys(range(len(sizes)), 0)
    while seen != dict(enumerate(sizes)):
        answer = talk.hear(Answers)
        for row, request in enumerate(answer.request.tolist()):
            seen[request] += 1
            assert answer.history["score"][row, 0] == pytest.approx(0.6 + 0.04 * request, abs=0.002)
            assert answer.probabilities[row].argmax() == labels[request]


def test_a_cancelled_request_is_not_run(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        talk.submit(1, pictures(5, 1.0))
        talk.submit(2, pictures(2, 1.0))
        talk.worker.put(Cancel(1))
    assert talk.hear(Cancelled) == Cancelled("queue", 5)
    assert talk.hear(Answers).request.tolist() == [2, 2]


def test_a_failed_batch_fails_its_requests_and_says_no_secret(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        talk.submit(1, pictures(2, 1.0))
        talk.submit(2, pictures(1, 1.0, label=BROKEN))
    failed = talk.hear(Failed)
    assert failed.requests.tolist() == [1, 2]
    assert "secret" not in failed.detail
    talk.submit(3, pictures(1, 1.0))
    assert talk.hear(Answers).request.tolist() == [3]


@pytest.mark.parametrize("engine", ["thread", "process"], indirect=True)  # inline, nobody can ask meanwhile
def test_gauges_count_images_that_came_while_the_device_was_busy(engine: tuple[Talk, Build]) -> None:
    talk, build = engine
    with talk.device_held(build.gate):
        talk.submit(1, pictures(12, 1.0))
        talk.submit(2, pictures(3, 1.0))
        load = talk.worker.load
        assert load is not None
        assert list(load.queued) == [15, 0, 0]
        assert list(load.oldest) == [1.0, np.inf, np.inf]
    while 2 not in talk.hear(Answers).request:
        pass
    load = talk.worker.load
    assert load is not None
    assert list(load.queued) == [0, 0, 0]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_error_that_only_the_caller_can_fix_is_final(make: type) -> None:
    talk = Talk(make, no_device, permits=8)
    assert talk.hear(Died) == Died("device: cuda is not available here")
    talk.worker.join(PATIENCE_SECONDS)
    assert talk.worker.load is None


class StoppingPort:
    """A port whose only message is Stop."""

    def __init__(self) -> None:
        self.said: list[Outbound] = []

    def take(self, *, block: bool) -> list[Inbound]:
        return [Stop()] if block else []

    def send(self, messages: list[Outbound]) -> None:
        self.said += messages

    def publish(self, load: Load) -> None:
        pass


def said_by(backend: FakeBackend, permits: int | None, shadow_every: int) -> list[Outbound]:
    port = StoppingPort()
    run(lambda: backend, port, permits=permits, shadow_every=shadow_every)
    return port.said


@pytest.mark.parametrize(
    ("permits", "shadow_every", "said"),
    [
        (None, 0, 100),
        (None, 100, 100 - SHADOW_SLOTS),
        (70, 0, 70),
        (70, 100, 70),
        (120, 0, 100),
    ],
)
def test_ready_says_how_many_images_may_be_in_flight(permits: int | None, shadow_every: int, said: int) -> None:
    ready, _died = said_by(FakeBackend(capacity=100), permits, shadow_every)
    assert isinstance(ready, Ready)
    assert (ready.backend, ready.device, ready.permits) == ("fake", "none", said)


def failing_above(images: int) -> Callable[[int, Pixels], None]:
    def fail(stage: int, pixels: Pixels) -> None:
        if len(pixels) > images:
            raise OutOfMemoryError("no room")

    return fail


def test_an_engine_whose_largest_batches_do_not_fit_serves_with_smaller_ones() -> None:
    backend = FakeBackend(max_batch=64, every_bucket=True)
    backend.fail = failing_above(8)
    ready, _died = said_by(backend, 200, 0)
    assert isinstance(ready, Ready)
    assert backend.buckets == (1, 2, 4, 8)


def test_an_engine_for_which_nothing_fits_is_never_ready() -> None:
    backend = FakeBackend(every_bucket=True)
    backend.fail = failing_above(0)
    (died,) = said_by(backend, 200, 0)
    assert isinstance(died, Died)
    assert died.detail == "a batch of 1 does not fit on none: no room"


# In this process, where the test needs to see its backend.


@contextmanager
def running(make: Callable[..., Worker], backend: FakeBackend) -> Iterator[Talk]:
    talk = Talk(make, lambda: backend, permits=backend.capacity)
    assert talk.worker.ready.wait(PATIENCE_SECONDS)
    talk.hear(Ready)
    backend.batches.clear()  # of the warm-up
    try:
        yield talk
    finally:
        talk.stop()


local = pytest.mark.parametrize("make", LOCAL.values(), ids=LOCAL)


def of(kind: type, said: list[Outbound]) -> list[Any]:
    return [message for message in said if isinstance(message, kind)]


@local
def test_every_batch_is_reported(make: type) -> None:
    backend = FakeBackend(max_batch=2)
    with running(make, backend) as talk:
        talk.submit(1, pictures(3, 0.2, 0.8))
        said = talk.stop()
    assert sorted((ran.stage, ran.images) for ran in of(Ran, said)) == sorted(backend.batches)
    assert sum(ran.images for ran in of(Ran, said) if ran.stage == 0) == 3
    assert sum(ran.images for ran in of(Ran, said) if ran.stage == 1) == 3


@local
def test_survivors_of_different_requests_share_the_next_stages_batch(make: type) -> None:
    backend = FakeBackend()
    with running(make, backend) as talk:
        with talk.device_held(backend.gate):
            for request in range(8):
                talk.submit(request, np.stack([picture(1.0), picture(0.2, 1.0)]))
        said = talk.stop()
    assert backend.batches == [(0, 1), (0, 16), (1, 8)]
    merged = of(Answers, said)[-1]
    assert merged.request.tolist() == list(range(8))
    assert (merged.exit == 2).all()


def broken_by_label_3(stage: int, pixels: Pixels) -> None:
    if (pixels[:, 1, 0, 1] == 3).any():
        raise ZeroDivisionError("a secret of the device")


@local
def test_a_device_that_fails_again_and_again_ends_the_worker(make: type) -> None:
    backend = FakeBackend(max_batch=1)
    with running(make, backend) as talk:
        backend.fail = broken_by_label_3
        with talk.device_held(backend.gate):
            for request in range(MAX_FAILURES):
                talk.submit(request, pictures(1, 1.0, label=3))
            talk.submit(99, pictures(1, 1.0))
        talk.worker.join(PATIENCE_SECONDS)
        assert not talk.worker.ready.is_set()
        assert talk.worker.load is None
        said = talk.stop()
    assert sorted(r for failed in of(Failed, said) for r in failed.requests.tolist()) == list(range(MAX_FAILURES))
    assert 99 not in [int(request) for answer in of(Answers, said) for request in answer.request]


@local
def test_cancelling_an_answered_request_does_nothing(make: type) -> None:
    backend = FakeBackend()
    with running(make, backend) as talk:
        talk.submit(1, pictures(1, 1.0))
        talk.worker.put(Cancel(1))
        talk.worker.put(Cancel(99))
        talk.submit(2, pictures(1, 1.0))
        said = talk.stop()
    assert 2 in [int(request) for answer in of(Answers, said) for request in answer.request]
    assert backend.taken == 0


@local
def test_it_warms_up_every_stage_and_bucket_before_it_is_ready(make: type) -> None:
    backend, ready_at_batch = FakeBackend(max_batch=8, every_bucket=True), list[bool]()
    worker = make(lambda: backend, lambda messages: None, permits=8)
    backend.fail = lambda stage, pixels: ready_at_batch.append(worker.ready.is_set())
    worker.start()
    assert worker.ready.wait(PATIENCE_SECONDS)
    warmed = list(backend.batches)
    worker.put(Stop())
    worker.join(PATIENCE_SECONDS)
    assert set(warmed) == {(stage, bucket) for stage in range(3) for bucket in backend.buckets}
    assert not any(ready_at_batch)


@local
def test_a_backend_that_cannot_be_built_is_the_end_and_tells_no_secret(make: type) -> None:
    def build() -> StageBackend:
        raise ZeroDivisionError("line 7 of some file")

    said: list[Outbound] = []
    worker = make(build, said.extend, permits=8)
    worker.start()
    worker.join(PATIENCE_SECONDS)
    assert said == [Died("engine failed")]
    assert not worker.ready.is_set()


@local
def test_what_is_in_flight_at_the_end_is_answered_before_it(make: type) -> None:
    backend = FakeBackend(max_batch=1)
    with running(make, backend) as talk:
        with talk.device_held(backend.gate):
            talk.submit(1, pictures(2, 0.2, 1.0))
            talk.worker.put(Stop())
        talk.worker.join(PATIENCE_SECONDS)
        said = talk.stop()
    assert [answer.request.tolist() for answer in of(Answers, said)] == [[OWN_REQUEST], [1], [1]]
    assert [exit for answer in of(Answers, said) for exit in answer.exit] == [1, 2, 2]
    assert said[-1] == Died("stopped")


@local
def test_what_comes_during_the_warm_up_is_answered_after_it(make: type) -> None:
    backend = FakeBackend()
    with backend.gate.held():
        talk = Talk(make, lambda: backend, permits=backend.capacity)
        backend.gate.wait_until_reached()
        for request in (1, 2):
            talk.submit(request, pictures(3, 1.0))
        talk.worker.put(Cancel(1))
        assert talk.worker.load is None
    talk.hear(Ready)
    assert talk.hear(Cancelled) == Cancelled("queue", 3)
    assert talk.hear(Answers).request.tolist() == [2, 2, 2]
    assert talk.stop()[-1] == Died("stopped")


# Inline alone.


@pytest.mark.parametrize(("seconds", "row"), [(0.0, 1), (60.0, 6)])
def test_inline_the_event_loop_has_its_turn_after_a_moment_of_batches(
    monkeypatch: pytest.MonkeyPatch, seconds: float, row: int
) -> None:
    monkeypatch.setattr(transport, "TURN_SECONDS", seconds)
    backend, happened = FakeBackend(max_batch=1), list[str]()
    with running(inline, backend) as talk:

        def batch(stage: int, pixels: Pixels) -> None:
            happened.append("batch")
            asyncio.get_running_loop().call_soon(happened.append, "another")

        backend.fail = batch
        talk.submit(1, pictures(3, 0.2, 1.0))
        talk.stop()
    assert happened == (["batch"] * row + ["another"] * row) * (6 // row)


class SlowClock:
    """`time` in which a batch takes 10 ms an image."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def batch(self, stage: int, pixels: Pixels) -> None:
        self.now += 0.01 * len(pixels)


@pytest.mark.parametrize(("make", "largest"), [(inline, 4), (thread, 16)])
def test_inline_no_batch_holds_the_event_loop_for_long(
    monkeypatch: pytest.MonkeyPatch, make: type, largest: int
) -> None:
    """The largest bucket is the last that takes at most MOST_SECONDS."""
    backend, clock = FakeBackend(max_batch=16, every_bucket=True), SlowClock()
    monkeypatch.setattr("msmlp.model.backends.protocol.time", clock)
    assert largest == 16 or 0.01 * largest <= MOST_SECONDS < 0.02 * largest
    backend.fail = clock.batch
    with running(make, backend) as talk:
        with talk.device_held(backend.gate):
            talk.submit(1, pictures(16, 1.0))
        said = talk.stop()
    assert backend.buckets[-1] == largest
    assert max(images for _, images in backend.batches) <= largest
    assert sum(len(answer.request) for answer in of(Answers, said)) == 17


def test_inline_a_batch_of_one_may_take_as_long_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, clock = FakeBackend(every_bucket=True), SlowClock()
    monkeypatch.setattr("msmlp.model.backends.protocol.time", clock)

    def batch(stage: int, pixels: Pixels) -> None:
        clock.now += 2 * MOST_SECONDS

    backend.fail = batch
    with running(inline, backend):
        assert backend.buckets == (1,)


# The thread alone.


def test_the_backend_is_built_and_used_on_the_workers_own_thread() -> None:
    threads = set()
    backend = FakeBackend()
    backend.fail = lambda stage, pixels: threads.add(threading.current_thread().name)
    worker = ThreadWorker(
        lambda: threads.add(threading.current_thread().name) or backend, lambda messages: None, permits=8
    )
    worker.start()
    worker.ready.wait(PATIENCE_SECONDS)
    worker.put(Stop())
    worker.join(PATIENCE_SECONDS)
    assert threads == {"msmlp-engine"}


def test_gauges_count_waiting_images() -> None:
    """While the second batch is held, the rest of the request waits, and the images in the batch do not."""
    backend = FakeBackend(max_batch=4)
    with running(thread, backend) as talk:
        backend_reached = threading.Semaphore(0)
        let_go = threading.Semaphore(0)

        def step(stage: int, pixels: Pixels) -> None:
            backend_reached.release()
            assert let_go.acquire(timeout=PATIENCE_SECONDS)

        backend.fail = step
        talk.submit(1, pictures(10, 0.2, 1.0))
        assert backend_reached.acquire(timeout=PATIENCE_SECONDS)
        let_go.release()
        assert backend_reached.acquire(timeout=PATIENCE_SECONDS)
        load = talk.worker.load
        backend.fail = lambda stage, pixels: None
        let_go.release()
        said = talk.stop()
    assert backend.batches[:2] == [(0, 4), (1, 4)]
    assert load is not None
    assert list(load.queued) == [6, 0, 0]
    assert np.isfinite(load.oldest).tolist() == [True, False, False]
    assert sum(len(answer.request) for answer in of(Answers, said)) == 10
    assert talk.worker.load is None


def test_submits_in_transit_are_counted_until_a_load_includes_them() -> None:
    """Between the two, the engine's own count does not have them yet."""
    worker = ThreadWorker(FakeBackend, lambda messages: None, permits=8)
    worker.ready.set()
    worker.publish(Load.none(3))
    for arrival in (1.0, 2.0):
        worker.put(Submit(1, pictures(2, 1.0), ExitParameters(np.array([0.5, 0.5]), 1, 3), arrival))

    def waiting() -> tuple[int, float]:
        load = worker.load
        assert load is not None
        return load.queued[0], load.oldest[0]

    assert waiting() == (4, 1.0)
    worker.take(block=True)
    assert waiting() == (4, 1.0)
    worker.publish(replace(Load.none(3), submits=1, images=2))
    assert waiting() == (2, 2.0)
    worker.publish(replace(Load.none(3), submits=2, images=4))
    assert waiting() == (0, np.inf)


def test_submits_in_transit_change_nothing_else_of_a_load() -> None:
    """Front ends that share an engine admit by what the others have in flight, also in a burst."""
    worker = ThreadWorker(FakeBackend, lambda messages: None, permits=8)
    worker.ready.set()
    published = Load((0, 0, 0), (np.inf,) * 3, 0.5, 0.25, 3.0, 1.2, 0, 0, Counts(7, 6, 9, 2))
    worker.publish(published)
    worker.put(Submit(1, pictures(2, 1.0), ExitParameters(np.array([0.5, 0.5]), 1, 3), 1.0))
    assert worker.load == replace(published, queued=(2, 0, 0), oldest=(1.0, np.inf, np.inf), backlog_seconds=1.0)


def test_an_engine_on_the_event_loop_tells_its_load_when_asked() -> None:
    said: list[Outbound] = []

    async def until(kind: type) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not of(kind, said):
                await asyncio.sleep(0.001)

    async def life() -> list[Load | None]:
        worker = InlineWorker(FakeBackend, said.extend, permits=8)
        worker.start()
        loads = [worker.load]
        await until(Ready)
        loads.append(worker.load)
        worker.put(Submit(1, pictures(2, 0.2, 1.0), ExitParameters(np.array([0.5, 0.5]), 1, 3), 1.0))
        loads.append(worker.load)
        await until(Answers)
        loads.append(worker.load)
        worker.put(Stop())
        await until(Died)
        return [*loads, worker.load]

    starting, ready, waiting, answered, ended = asyncio.run(life())
    assert starting is ended is None
    assert ready
    assert waiting
    assert answered
    assert (ready.queued, ready.submits) == ((0, 0, 0), 0)
    assert (waiting.queued, waiting.oldest[0]) == ((2, 0, 0), 1.0)
    assert (answered.queued, answered.submits, answered.backlog_seconds) == ((0, 0, 0), 1, 0.0)
    assert answered.work_seconds > 0
