"""Several front ends of one engine, which is another process."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest

from msmlp.model.errors import DeviceError
from msmlp.service.engine.admission import Permits
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.heartbeat import LOOK_SECONDS
from msmlp.service.engine.messages import Answers, Cancelled, Counts, Died, ExitParameters, Failed, Ready, Stop, Submit
from msmlp.service.engine.process.host import EngineHost
from msmlp.service.engine.process.remote import ENDED, GONE, Connection, RemoteWorker
from msmlp.service.engine.transport import Send
from msmlp.service.errors import EngineDownError, OverloadedError
from tests.engines import FATAL, OWN_REQUEST, SHAPE, BreaksLater, Build, OnLoop, Talk, host_of, remote
from tests.fakes import PATIENCE_SECONDS, pictures
from tests.servers import wait_until

CAPACITY = 16


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[EngineHost, Build]]:
    build = Build(capacity=CAPACITY, max_batch=4)
    host = host_of(build, permits=CAPACITY)
    host.start()
    yield host, build
    host.stop()
    assert host.wait(PATIENCE_SECONDS)
    assert host.died == Died("stopped")


@contextmanager
def front_end(host: EngineHost, **options: int) -> Iterator[Talk]:
    talk = Talk(remote, host.address, **options)
    try:
        talk.hear(Ready)
        yield talk
    finally:
        vanish(talk)


def vanish(talk: Talk) -> None:
    """Hang up without a word, as a front end does that is killed."""
    assert isinstance(talk.worker, OnLoop)
    remote = talk.worker.worker
    talk.worker._do(lambda: remote._close())  # type: ignore[attr-defined]
    talk.worker.close()


def answered(talk: Talk, request: int, images: int) -> list[int]:
    """The labels of a request's answers, once they all came; nothing may come for another."""
    labels: list[int] = []
    while len(labels) < images:
        answers = talk.hear(Answers)
        assert set(answers.request.tolist()) == {request}
        labels += answers.probabilities.argmax(axis=1).tolist()
    return labels


def test_two_front_ends_get_their_own_answers_only(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine
    with front_end(host) as one, front_end(host) as other:
        for _ in range(5):
            with one.device_held(build.gate):
                one.submit(7, pictures(5, 1.0, label=1))
                other.submit(7, pictures(5, 1.0, label=2))
            assert answered(one, OWN_REQUEST, 1) == [0]
            assert answered(one, 7, 5) == [1] * 5
            assert answered(other, 7, 5) == [2] * 5


def test_batches_hold_images_of_all(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine
    with front_end(host) as one, front_end(host) as other:
        with one.device_held(build.gate):
            one.submit(1, pictures(2, 1.0))
            wait_until(lambda: in_queue(one) == 2)
            other.submit(1, pictures(2, 1.0))
        one.hear(Answers)
        answers = one.hear(Answers), other.hear(Answers)
        assert [each.history["batch_size"][0, 0] for each in answers] == [4, 4]


def in_queue(talk: Talk) -> int:
    load = talk.worker.load
    assert load is not None
    return load.queued[0]


def test_a_front_end_that_hangs_up_leaves_its_slots_to_the_others(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine
    with front_end(host) as stays:
        with front_end(host) as leaves, leaves.device_held(build.gate):
            leaves.submit(1, pictures(CAPACITY - 1, 0.1, 0.1, 0.1))
            vanish(leaves)
        cancelled = 0  # which those who are left count
        while cancelled < CAPACITY - 1:  # the first was in its batch
            cancelled += stays.hear(Cancelled).images
        for request in range(3):
            stays.submit(request, pictures(CAPACITY, 1.0))
            assert len(answered(stays, request, CAPACITY)) == CAPACITY


def test_more_images_than_slots_are_refused_and_no_failure_of_the_device(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine
    with front_end(host) as one, front_end(host) as other:
        with one.device_held(build.gate):
            one.submit(1, pictures(CAPACITY - 1, 1.0))
            assert in_queue(one) == CAPACITY - 1
            other.submit(1, pictures(CAPACITY, 1.0))
        refused = other.hear(Failed)
        assert (refused.requests.tolist(), refused.shed) == ([1], CAPACITY)
        assert len(answered(one, OWN_REQUEST, 1) + answered(one, 1, CAPACITY - 1)) == CAPACITY
        other.submit(2, pictures(CAPACITY, 1.0))
        assert len(answered(other, 2, CAPACITY)) == CAPACITY


def test_a_front_end_that_stops_reading_delays_nobody(engine: tuple[EngineHost, Build]) -> None:
    host, _ = engine
    with front_end(host) as deaf, front_end(host) as other:
        assert isinstance(deaf.worker, OnLoop)
        loop = deaf.worker._loop
        for request in range(500):
            deaf.submit(request, pictures(8, 1.0))
            other.submit(request, pictures(8, 1.0))
            if request == 10:
                reading = deaf.worker.worker._connection.channel.fileno()  # type: ignore[attr-defined]
                loop.call_soon_threadsafe(loop.remove_reader, reading)
            assert len(answered(other, request, 8)) == 8


def test_each_front_end_counts_the_images_of_all(engine: tuple[EngineHost, Build]) -> None:
    host, _ = engine
    with front_end(host) as one:
        one.worker.share(Counts(5, 4, 30, 2))  # type: ignore[misc]
        with front_end(host) as other:
            other.worker.share(Counts(7, 1, 10, 0))  # type: ignore[misc]
            assert others(one) == Counts(7, 1, 10, 0)
            assert others(other) == Counts(5, 4, 30, 2)
        wait_until(lambda: others(one) == Counts())


def others(talk: Talk) -> Counts:
    load = talk.worker.load
    assert load is not None
    return load.others


def test_stopping_ends_this_front_end_after_its_answers_and_not_the_engine(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine
    with front_end(host) as stays:
        stops = Talk(remote, host.address)
        stops.hear(Ready)
        with stays.device_held(build.gate):
            stops.submit(1, pictures(6, 1.0))
            stops.worker.put(Stop())
            time.sleep(0.01)
            assert stops.worker.ready.is_set()
        said = stops.stop()
        assert sum(len(message.request) for message in said if isinstance(message, Answers)) == 6
        assert said[-1] == Died("stopped")
        stays.hear(Answers)
        stays.submit(2, pictures(1, 1.0))
        assert answered(stays, 2, 1) == [0]


def test_a_request_that_can_never_fit_is_refused(engine: tuple[EngineHost, Build]) -> None:
    host, _ = engine
    with front_end(host, ring_images=4) as talk:
        with pytest.raises(DeviceError, match="a request has 5 images; expected at most 4"):
            talk.submit(1, pictures(5, 1.0))
        for request in range(2, 30):
            talk.submit(request, pictures(3, 1.0, label=request % 4))
        for request in range(2, 30):
            assert answered(talk, request, 3) == [request % 4] * 3


def test_a_ring_is_used_again_before_its_images_are_answered(engine: tuple[EngineHost, Build]) -> None:
    """The engine has stored them then, and says nothing."""
    host, build = engine
    with front_end(host, ring_images=4) as talk:
        assert isinstance(talk.worker, OnLoop)
        worker: Any = talk.worker.worker

        def submit_both() -> None:  # in one turn of the loop
            for request in (1, 2):
                worker.put(Submit(request, pictures(4, 1.0), PARAMETERS, 1.0))

        with build.gate.held():
            talk.worker._do(submit_both)
            wait_until(lambda: not worker._connection._outbox)
        assert answered(talk, 1, 4) + answered(talk, 2, 4) == [0] * 8


def test_all_front_ends_learn_an_engines_death_and_connect_to_the_next(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine
    with front_end(host) as one, front_end(host) as other:
        with one.device_held(build.gate):
            other.submit(3, pictures(2, 1.0))
            wait_until(lambda: in_queue(other) == 2)
            assert host.pid is not None
            os.kill(host.pid, signal.SIGKILL)
            for talk, request in ((one, OWN_REQUEST), (other, 3)):
                failed = talk.hear(Failed)
                assert (failed.requests.tolist(), failed.shed) == ([request], 0)
                assert talk.hear(Died) == ENDED
                assert not talk.worker.ready.is_set()
        for talk in (one, other):
            talk.hear(Ready)
            assert isinstance(talk.worker, OnLoop)
            assert talk.worker.worker.restarts == 1  # type: ignore[attr-defined]
            talk.submit(4, pictures(2, 1.0))
            assert len(answered(talk, 4, 2)) == 2


def test_an_engine_that_follows_a_silent_one_is_not_called_silent(
    engine: tuple[EngineHost, Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it has beaten as often as that when it was last seen."""
    monkeypatch.setattr(Connection, "beat", 1.0)
    with front_end(engine[0]) as talk:
        assert isinstance(talk.worker, OnLoop)
        worker, now = talk.worker.worker, 0.0
        while talk.worker.ready.is_set():
            now += LOOK_SECONDS
            talk.worker._do(lambda: worker.look(now))  # noqa: B023 (waits for it)
        assert "has not responded for" in talk.hear(Died).detail
        talk.hear(Ready)
        wait_until(talk.worker.ready.is_set)
        talk.worker._do(lambda: worker.look(now + LOOK_SECONDS))
        assert talk.worker.ready.is_set()
        assert worker.restarts == 1  # type: ignore[attr-defined]


def test_an_engine_that_is_out_of_service_is_gone_for_all() -> None:
    build = BreaksLater(capacity=CAPACITY)
    host = host_of(build)
    host.start()
    with front_end(host) as one, front_end(host) as other:
        build.broken.value = 1
        one.submit(1, pictures(1, 1.0, label=FATAL))
        for talk in (one, other):
            assert talk.hear(Died) == ENDED
            assert talk.hear(Died) == GONE
            talk.worker.join(PATIENCE_SECONDS)
        late = Talk(remote, host.address)
        assert late.hear(Died) == GONE
        late.worker.join(PATIENCE_SECONDS)
    assert host.wait(PATIENCE_SECONDS)
    assert (host.state, host.restarts) == ("out", 3)


# --- as AsyncEngine sees it ------------------------------------------------------------------------------------------

PARAMETERS = ExitParameters(np.array([0.5, 0.5]), 1, 3)


@asynccontextmanager
async def engine_at(host: EngineHost) -> AsyncIterator[AsyncEngine]:
    """An AsyncEngine, as each front end has one."""

    def connect(_: object, send: Send, **__: object) -> RemoteWorker:
        return RemoteWorker(host.address, send, ring_images=64, **SHAPE)

    made = AsyncEngine(Build(), worker=connect)
    made.start()
    try:
        assert await asyncio.to_thread(made.worker.ready.wait, PATIENCE_SECONDS)
        yield made
    finally:
        await made.stop()
        assert made.admission.inflight == made.admission.inside == 0


async def classify(made: AsyncEngine, images: int, label: int = 0) -> list[int]:
    with made.admit(images) as permits:
        result = await made.classify(pictures(images, 1.0, label=label), PARAMETERS, permits)
    labels: list[int] = result.probabilities.argmax(axis=1).tolist()
    return labels


def test_front_ends_share_an_engines_permits(engine: tuple[EngineHost, Build]) -> None:
    host, build = engine

    async def main() -> None:
        async with engine_at(host) as one, engine_at(host) as other:
            assert one.admission.permits == other.admission.permits == CAPACITY
            with build.gate.held():
                first = asyncio.create_task(classify(one, 10, label=1))
                await asyncio.to_thread(build.gate.wait_until_reached)
                with pytest.raises(OverloadedError) as refused:
                    other.admit(7)
                assert refused.value.reason == "capacity"
                assert "10 of 16 images in flight, 7 more requested" in str(refused.value)
                second = asyncio.create_task(classify(other, 6, label=2))
                await asyncio.sleep(0)
            assert await first == [1] * 10
            assert await second == [2] * 6
            assert await classify(other, 16) == [0] * 16

    asyncio.run(main())


def test_too_many_images_admitted_together_are_429_and_no_failure(engine: tuple[EngineHost, Build]) -> None:
    """Counts are read without a lock: front ends may admit the same permit at once."""
    host, build = engine

    async def main() -> None:
        async with engine_at(host) as one, engine_at(host) as other:
            with build.gate.held():
                first = asyncio.create_task(classify(one, 10))
                await asyncio.to_thread(build.gate.wait_until_reached)
                late = asyncio.create_task(too_many(other))
                await asyncio.sleep(0.05)
            with pytest.raises(OverloadedError) as refused:
                await late
            assert (refused.value.reason, str(refused.value)) == ("capacity", "the service is full")
            assert await first == [0] * 10
            assert await classify(other, 10) == [0] * 10

    async def too_many(other: AsyncEngine) -> None:
        with Permits(other.admission, 0) as permits:
            await other.classify(pictures(CAPACITY, 1.0), PARAMETERS, permits)

    asyncio.run(main())


def test_all_that_was_in_flight_fails_with_its_engine_and_what_comes_after_is_answered(
    engine: tuple[EngineHost, Build],
) -> None:
    host, build = engine

    async def main() -> None:
        async with engine_at(host) as one, engine_at(host) as other:
            with build.gate.held():
                calls = [asyncio.create_task(classify(each, 3)) for each in (one, other)]
                await asyncio.to_thread(build.gate.wait_until_reached)
                assert host.pid is not None
                os.kill(host.pid, signal.SIGKILL)
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [EngineDownError] * 2
            for each in (one, other):
                with pytest.raises(EngineDownError, match="restarted"):
                    each.check()
                assert not each.down
            for each in (one, other):
                assert await asyncio.to_thread(each.worker.ready.wait, PATIENCE_SECONDS)
                assert await classify(each, 3, label=2) == [2] * 3

    asyncio.run(main())
