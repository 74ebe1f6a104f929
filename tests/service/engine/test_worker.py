"""The worker's thread, spoken to through its messages alone."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.errors import OptionError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.core import MAX_FAILURES
from msmlp.service.engine.messages import Answers, Cancel, Died, Failed, Load, Outbound, Ran, Stop, Submit, Terms
from msmlp.service.engine.transport import Worker
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture, pictures

Pixels = NDArray[np.uint8]


class Talk:
    """A running worker and all it says."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self._said: queue.SimpleQueue[list[Outbound]] = queue.SimpleQueue()
        self.worker = Worker(lambda: backend, self._said.put, capacity=backend.capacity)
        self.worker.start()
        assert self.worker.ready.wait(PATIENCE_SECONDS)
        backend.batches.clear()  # of the warm-up

    def submit(self, request: int, pixels: Pixels, *, thresholds: tuple[float, ...] = (0.5, 0.5)) -> None:
        self.worker.put(Submit(request, pixels, Terms(np.array(thresholds), 1, 3), arrival=0.0))

    def stop(self) -> list[Outbound]:
        """End the worker → everything it said, in order."""
        self.worker.put(Stop())
        self.worker.join(PATIENCE_SECONDS)
        said = []
        while not self._said.empty():
            said += self._said.get()
        assert isinstance(said[-1], Died)
        return said


@contextmanager
def talking(backend: FakeBackend) -> Iterator[Talk]:
    talk = Talk(backend)
    try:
        yield talk
    finally:
        talk.worker.put(Stop())
        talk.worker.join(PATIENCE_SECONDS)


def of(kind: type, said: list[Outbound]) -> list:
    return [message for message in said if isinstance(message, kind)]


@contextmanager
def device_held(talk: Talk) -> Iterator[None]:
    """While this lasts, the device is busy with a request of its own (number -1) and everyone else waits."""
    with talk.backend.gate.held():
        talk.submit(-1, pictures(1, 1.0))
        talk.backend.gate.wait_until_reached()
        yield


def test_an_answer_says_where_why_and_what_every_stage_said() -> None:
    with talking(FakeBackend()) as talk:
        talk.submit(7, np.stack([picture(1.0, label=2), picture(0.2, 0.8, label=3), picture(0.2, 0.2, 0.4, label=1)]))
        said = talk.stop()
    answers = {(a.request[i], a.index[i]): (a, i) for a in of(Answers, said) for i in range(len(a.request))}
    assert set(answers) == {(7, 0), (7, 1), (7, 2)}
    for index, (exit, reason, label) in enumerate(
        [(1, Reason.CONFIDENT, 2), (2, Reason.CONFIDENT, 3), (3, Reason.FINAL, 1)]
    ):
        answer, row = answers[7, index]
        assert (answer.exit[row], answer.reason[row]) == (exit, reason)
        assert answer.probabilities[row].argmax() == answer.history.class_id[row, exit - 1] == label
    answer, row = answers[7, 2]
    assert answer.history.score[row].tolist() == pytest.approx([0.2, 0.2, 0.4])
    assert answer.history.batch_size[row].tolist() == [3, 2, 1]
    assert (answer.history.compute_seconds[row] >= 0).all()
    assert (answer.history.queue_seconds[row] >= 0).all()
    answer, row = answers[7, 1]
    assert answer.probabilities[row].tolist() == pytest.approx([0.2 / 3, 0.2 / 3, 0.2 / 3, 0.8])


def test_every_batch_is_reported() -> None:
    with talking(FakeBackend(max_batch=2)) as talk:
        talk.submit(1, pictures(3, 0.2, 0.8))
        said = talk.stop()
    assert sorted((ran.stage, ran.images) for ran in of(Ran, said)) == sorted(talk.backend.batches)
    assert sum(ran.images for ran in of(Ran, said) if ran.stage == 0) == 3
    assert sum(ran.images for ran in of(Ran, said) if ran.stage == 1) == 3


def test_with_the_device_held_64_waiting_requests_leave_as_one_batch() -> None:
    with talking(FakeBackend()) as talk:
        with device_held(talk):
            for request in range(64):
                talk.submit(request, pictures(1, 1.0))
        said = talk.stop()
    assert talk.backend.batches == [(0, 1), (0, 64)]
    together = of(Answers, said)[1]
    assert together.request.tolist() == list(range(64))
    assert (together.history.batch_size[:, 0] == 64).all()


def test_survivors_of_different_requests_share_the_next_stages_batch() -> None:
    with talking(FakeBackend()) as talk:
        with device_held(talk):
            for request in range(8):
                talk.submit(request, np.stack([picture(1.0), picture(0.2, 1.0)]))
        said = talk.stop()
    assert talk.backend.batches == [(0, 1), (0, 16), (1, 8)]
    merged = of(Answers, said)[-1]
    assert merged.request.tolist() == list(range(8))
    assert (merged.exit == 2).all()


def test_no_batch_is_larger_than_the_largest_bucket() -> None:
    with talking(FakeBackend(max_batch=24)) as talk:
        with device_held(talk):
            talk.submit(1, pictures(100, 1.0))
        talk.stop()
    assert talk.backend.batches == [(0, 1), (0, 24), (0, 24), (0, 24), (0, 24), (0, 4)]


def test_stopping_answers_what_waits_and_says_so() -> None:
    with talking(FakeBackend()) as talk:
        with device_held(talk):
            talk.submit(1, pictures(5, 0.2, 0.2, 0.2))
            talk.worker.put(Stop())
        said = talk.stop()
    assert sum((answer.request == 1).sum() for answer in of(Answers, said)) == 5
    assert len(of(Died, said)) == 1
    assert not talk.worker.ready.is_set()
    assert talk.backend.taken == 0


def broken_by_label_3(stage: int, pixels: Pixels) -> None:
    if (pixels[:, 1, 0, 1] == 3).any():
        raise ZeroDivisionError("a secret of the device")


def test_a_failed_batch_fails_its_requests_and_only_them() -> None:
    backend = FakeBackend(max_batch=4)
    with talking(backend) as talk:
        backend.fail = broken_by_label_3
        with device_held(talk):
            talk.submit(1, pictures(4, 1.0, label=1))
            # Its first image is aboard the batch that fails, the others would come later.
            talk.submit(2, np.concatenate([pictures(1, 1.0, label=3), pictures(5, 1.0)]))
            talk.submit(3, pictures(3, 0.2, 1.0, label=2))
        said = talk.stop()
    (failed,) = of(Failed, said)
    assert failed.requests.tolist() == [2]
    assert "secret" not in failed.detail
    answered = [int(request) for answer in of(Answers, said) for request in answer.request]
    assert sorted(answered) == [-1] + [1] * 4 + [3] * 3
    assert backend.taken == 0


def test_everyone_aboard_a_failed_batch_fails_with_it() -> None:
    backend = FakeBackend()
    with talking(backend) as talk:
        backend.fail = broken_by_label_3
        with device_held(talk):
            talk.submit(1, pictures(2, 1.0))
            talk.submit(2, pictures(1, 1.0, label=3))
        said = talk.stop()
    (failed,) = of(Failed, said)
    assert failed.requests.tolist() == [1, 2]
    assert backend.taken == 0


def test_a_device_that_fails_again_and_again_is_the_workers_end() -> None:
    backend = FakeBackend(max_batch=1)
    with talking(backend) as talk:
        backend.fail = broken_by_label_3
        with device_held(talk):
            for request in range(MAX_FAILURES):
                talk.submit(request, pictures(1, 1.0, label=3))
            talk.submit(99, pictures(1, 1.0))
        talk.worker.join(PATIENCE_SECONDS)
        assert not talk.worker.ready.is_set()
        said = talk.stop()
    assert sorted(r for failed in of(Failed, said) for r in failed.requests.tolist()) == list(range(MAX_FAILURES))
    assert 99 not in [int(request) for answer in of(Answers, said) for request in answer.request]


def test_one_batch_that_succeeds_forgives_those_that_failed() -> None:
    backend = FakeBackend(max_batch=1)
    with talking(backend) as talk:
        backend.fail = broken_by_label_3
        with device_held(talk):
            for request in range(3 * MAX_FAILURES):
                talk.submit(request, pictures(1, 1.0, label=3 if request % MAX_FAILURES else 1))
        said = talk.stop()
    answered = sorted(int(request) for answer in of(Answers, said) for request in answer.request)
    assert answered == [-1, *range(0, 3 * MAX_FAILURES, MAX_FAILURES)]


def test_a_request_the_backend_has_no_slots_for_fails_alone() -> None:
    with talking(FakeBackend(capacity=8)) as talk:
        with device_held(talk):
            talk.submit(1, pictures(8, 1.0))
            talk.submit(2, pictures(1, 1.0))
        said = talk.stop()
    assert [message.requests.tolist() for message in of(Failed, said)] == [[2]]
    assert sum((answer.request == 1).sum() for answer in of(Answers, said)) == 8
    assert talk.backend.taken == 0


def test_a_cancelled_request_is_not_run_and_frees_its_slots() -> None:
    with talking(FakeBackend()) as talk:
        with device_held(talk):
            talk.submit(1, pictures(5, 1.0))
            talk.submit(2, pictures(3, 1.0))
            talk.worker.put(Cancel(1))
        said = talk.stop()
    assert talk.backend.batches == [(0, 1), (0, 3)]
    assert 1 not in [int(request) for answer in of(Answers, said) for request in answer.request]
    assert talk.backend.taken == 0


def test_a_request_cancelled_while_it_runs_frees_its_slots_after_the_batch() -> None:
    with talking(FakeBackend()) as talk:
        with talk.backend.gate.held():
            talk.submit(1, pictures(5, 0.2, 0.2, 0.2))
            talk.backend.gate.wait_until_reached()
            talk.worker.put(Cancel(1))
        said = talk.stop()
    assert talk.backend.batches == [(0, 5)], "no stage beyond the one that ran"
    assert of(Answers, said) == []
    assert talk.backend.taken == 0


def test_cancelling_what_has_been_answered_is_nothing() -> None:
    with talking(FakeBackend()) as talk:
        talk.submit(1, pictures(1, 1.0))
        talk.worker.put(Cancel(1))
        talk.worker.put(Cancel(99))
        talk.submit(2, pictures(1, 1.0))
        said = talk.stop()
    assert 2 in [int(request) for answer in of(Answers, said) for request in answer.request]
    assert talk.backend.taken == 0


def test_it_warms_up_every_stage_and_bucket_before_it_is_ready() -> None:
    backend, ready_at_batch = FakeBackend(max_batch=8, every_bucket=True), []
    worker = Worker(lambda: backend, lambda messages: None, capacity=8)
    backend.fail = lambda stage, pixels: ready_at_batch.append(worker.ready.is_set())
    worker.start()
    assert worker.ready.wait(PATIENCE_SECONDS)
    warmed = list(backend.batches)
    worker.put(Stop())
    worker.join(PATIENCE_SECONDS)
    assert set(warmed) == {(stage, bucket) for stage in range(3) for bucket in backend.buckets}
    assert not any(ready_at_batch)


def cannot(error: Exception) -> list[Outbound]:
    """What a worker says whose backend cannot be built."""
    said: list[Outbound] = []

    def build() -> StageBackend:
        raise error

    worker = Worker(build, said.extend, capacity=8)
    worker.start()
    worker.join(PATIENCE_SECONDS)
    assert not worker.ready.is_set()
    return said


def test_a_backend_that_cannot_be_built_is_the_workers_end_in_words() -> None:
    (died,) = cannot(OptionError("device", "cuda is not available here"))
    assert isinstance(died, Died)
    assert died.detail == "device: cuda is not available here"
    (died,) = cannot(ZeroDivisionError("line 7 of some file"))
    assert isinstance(died, Died)
    assert "line 7" not in died.detail


def test_a_backend_that_cannot_be_warmed_up_is_the_workers_end() -> None:
    backend, said = FakeBackend(every_bucket=True), []

    def broken(stage: int, pixels: Pixels) -> None:
        if len(pixels) == 8:
            raise MemoryError

    backend.fail = broken
    worker = Worker(lambda: backend, said.extend, capacity=8)
    worker.start()
    worker.join(PATIENCE_SECONDS)
    assert [type(message) for message in said] == [Died]
    assert not worker.ready.is_set()


def test_the_backend_is_built_and_used_on_the_workers_own_thread() -> None:
    threads = set()
    backend = FakeBackend()
    backend.fail = lambda stage, pixels: threads.add(threading.current_thread().name)
    worker = Worker(lambda: threads.add(threading.current_thread().name) or backend, lambda messages: None, capacity=8)
    worker.start()
    worker.ready.wait(PATIENCE_SECONDS)
    worker.put(Stop())
    worker.join(PATIENCE_SECONDS)
    assert threads == {"msmlp-engine"}


def test_gauges_see_who_waits() -> None:
    """While the second batch is held, the rest of the request waits, and those aboard do not."""
    backend = FakeBackend(max_batch=4)
    with talking(backend) as talk:
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
    assert talk.backend.batches[:2] == [(0, 4), (1, 4)]
    assert load is not None
    assert list(load.queued) == [6, 0, 0]
    assert np.isfinite(load.oldest).tolist() == [True, False, False]
    assert sum(len(answer.request) for answer in of(Answers, said)) == 10
    assert talk.worker.load is None


def test_gauges_see_who_came_while_the_device_was_busy() -> None:
    with talking(FakeBackend()) as talk:
        with device_held(talk):
            talk.submit(1, pictures(5, 1.0))
            talk.submit(2, pictures(2, 1.0))
            load = talk.worker.load
            assert load is not None
            assert list(load.queued) == [7, 0, 0]
            assert np.isfinite(load.oldest).tolist() == [True, False, False]
        talk.stop()
        assert talk.worker.load is None


def test_gauges_of_a_worker_that_died_count_nobody() -> None:
    backend = FakeBackend(max_batch=1)
    with talking(backend) as talk:
        backend.fail = broken_by_label_3
        with device_held(talk):
            talk.submit(1, pictures(5, 1.0, label=3))
            for request in range(2, 9):
                talk.submit(request, pictures(1, 1.0, label=3))
        talk.worker.join(PATIENCE_SECONDS)
        assert talk.worker.load is None


def test_who_is_taken_in_is_counted_until_the_next_load_is_shown() -> None:
    """Between the two, the engine's own count does not have them yet."""
    worker = Worker(FakeBackend, lambda messages: None, capacity=8)
    worker.ready.set()
    worker.publish(Load.none(3))
    for arrival in (1.0, 2.0):
        worker.put(Submit(1, pictures(2, 1.0), Terms(np.array([0.5, 0.5]), 1, 3), arrival))

    def waiting() -> tuple[int, float]:
        load = worker.load
        assert load is not None
        return load.queued[0], load.oldest[0]

    first, second = worker.take(block=True)
    worker.taken(first)
    assert waiting() == (4, 1.0)
    worker.publish(Load.none(3))
    assert waiting() == (2, 2.0)
    worker.taken(second)
    worker.publish(Load.none(3))
    assert waiting() == (0, np.inf)
