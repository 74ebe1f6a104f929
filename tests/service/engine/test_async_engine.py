"""The engine as routes see it, on an event loop of its own in every test."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine import async_engine, core, overload
from msmlp.service.engine.async_engine import AsyncEngine, Throughput
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.engine.messages import (
    Cancelled,
    Died,
    ExitParameters,
    Inbound,
    Load,
    Outbound,
    Shadowed,
    Stop,
    Submit,
)
from msmlp.service.engine.result import Result
from msmlp.service.engine.transport import ThreadWorker
from msmlp.service.errors import EngineDownError, OverloadedError, StartingError
from tests.fakes import PATIENCE_SECONDS, Clock, FakeBackend, picture, pictures

Scenario = Callable[[AsyncEngine], Awaitable[None]]


def play(backend: FakeBackend, scenario: Scenario, *, all_released: bool = True, **options: Any) -> None:
    """Run a scenario on a ready engine; at its end nothing may be in flight and, by default, all slots are free."""

    async def main() -> None:
        engine = AsyncEngine(lambda: backend, **{"permits": backend.capacity, **options})
        engine.start()
        assert await asyncio.to_thread(engine.worker.ready.wait, PATIENCE_SECONDS)
        backend.batches.clear()  # of the warm-up
        try:
            await scenario(engine)
        finally:
            await engine.stop()
        assert engine.admission.inside == 0
        assert backend.taken == 0 or not all_released

    asyncio.run(main())


async def classify(engine: AsyncEngine, pixels: NDArray[np.uint8], *, min_exit: int = 1, max_exit: int = 3) -> Result:
    with engine.admit(len(pixels)) as permits:
        return await engine.classify(pixels, ExitParameters(np.array([0.5, 0.5]), min_exit, max_exit), permits)


async def started(*tasks: "asyncio.Task[Result]") -> None:
    """Until each task has handed its images over: they do so in their first step."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def test_answers_come_in_the_order_of_the_images() -> None:
    async def scenario(engine: AsyncEngine) -> None:
        images = np.stack([picture(0.2, 0.2, 0.6, label=1), picture(1.0, label=2), picture(0.2, 0.8, label=3)])
        result = await classify(engine, images)
        assert result.exit.tolist() == [3, 1, 2]
        assert result.reason.tolist() == [Reason.FINAL, Reason.CONFIDENT, Reason.CONFIDENT]
        assert result.probabilities.argmax(axis=1).tolist() == [1, 2, 3]
        assert result.history["score"][0].tolist() == pytest.approx([0.2, 0.2, 0.6])
        assert result.history["batch_size"][0].tolist() == [3, 2, 1]
        assert (result.landed > 0).all()
        assert result.landed[1] <= result.landed[2] <= result.landed[0]

    play(FakeBackend(), scenario)


def test_exit_bounds_are_kept() -> None:
    async def scenario(engine: AsyncEngine) -> None:
        late = await classify(engine, pictures(1, 1.0, 1.0), min_exit=2)
        assert (late.exit[0], late.reason[0]) == (2, Reason.CONFIDENT)
        early = await classify(engine, pictures(1, 0.1, 0.1), max_exit=2)
        assert (early.exit[0], early.reason[0]) == (2, Reason.MAX_EXIT)

    play(FakeBackend(), scenario)


def test_answers_that_cannot_be_joined_fail_their_request_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    join = Result.joined

    def joined(parts: Sequence[Result]) -> Result:
        if len(parts) > 1:
            raise ValueError("columns do not fit")
        return join(parts)

    monkeypatch.setattr(Result, "joined", joined)

    async def scenario(engine: AsyncEngine) -> None:
        torn = asyncio.create_task(classify(engine, np.stack([picture(1.0), picture(0.2, 1.0)])))
        whole = asyncio.create_task(classify(engine, pictures(1, 0.2, 1.0)))
        with pytest.raises(ValueError, match="do not fit"):
            await torn
        assert (await whole).exit.tolist() == [2]
        assert (await classify(engine, pictures(1, 1.0))).exit.tolist() == [1]

    play(FakeBackend(), scenario)


def test_a_device_failure_fails_the_requests_of_its_batch_only() -> None:
    backend = FakeBackend(max_batch=2)

    def broken_by_label_3(stage: int, pixels: NDArray[np.uint8]) -> None:
        if (pixels[:, 1, 0, 1] == 3).any():
            raise DeviceError("secret: illegal memory access in kernel 7")

    async def scenario(engine: AsyncEngine) -> None:
        backend.fail = broken_by_label_3
        with backend.gate.held():
            first = asyncio.create_task(classify(engine, pictures(1, 1.0)))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            good = asyncio.create_task(classify(engine, pictures(2, 1.0, label=1)))
            bad = asyncio.create_task(classify(engine, pictures(4, 1.0, label=3)))
            after = asyncio.create_task(classify(engine, pictures(2, 0.2, 1.0, label=2)))
            await started(good, bad, after)
        assert (await first).exit.tolist() == [1]
        assert (await good).exit.tolist() == [1, 1]
        assert (await after).exit.tolist() == [2, 2]
        with pytest.raises(EngineDownError) as caught:
            await bad
        assert "secret" not in str(caught.value)
        assert engine.up
        assert (await classify(engine, pictures(1, 1.0))).exit.tolist() == [1]

    play(backend, scenario)


def test_a_request_that_cannot_be_handed_over_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        put = engine.worker.put

        def put_but_no_two(message: Inbound) -> None:
            if isinstance(message, Submit) and len(message.pixels) == 2:
                raise OSError("secret: no space left on device")
            put(message)

        monkeypatch.setattr(engine.worker, "put", put_but_no_two)
        calls = [asyncio.create_task(classify(engine, pictures(n, 1.0))) for n in (1, 2, 3)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            first, failed, last = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, Result)
        assert isinstance(last, Result)
        assert isinstance(failed, EngineDownError)
        assert "secret" not in str(failed)

    play(FakeBackend(), scenario)


def test_what_comes_in_one_turn_of_the_loop_runs_together() -> None:
    backend = FakeBackend()

    async def scenario(engine: AsyncEngine) -> None:
        with backend.gate.held():
            first = asyncio.create_task(classify(engine, pictures(1, 1.0)))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            together = asyncio.gather(*(classify(engine, pictures(1, 1.0)) for _ in range(5)))
            await asyncio.sleep(0)
            assert engine.worker.load is not None
            assert engine.worker.load.queued[0] == 0, "they wait for the turn's end"
            await asyncio.sleep(0)
            assert engine.worker.load.queued[0] == 5
        await asyncio.gather(first, together)
        assert backend.batches == [(0, 1), (0, 5)]

    play(backend, scenario)


def test_a_hand_over_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ThreadWorker, message: Inbound) -> None:
        raise DeviceError("no places")

    async def scenario(engine: AsyncEngine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadWorker, "put", refuse)
            with pytest.raises(DeviceError):
                await classify(engine, pictures(8, 1.0))
        assert engine.admission.inflight == engine.admission.inside == 0
        assert not engine._pending

    play(FakeBackend(), scenario)


def test_images_whose_caller_left_while_they_ran_are_no_throughput() -> None:
    backend = FakeBackend()

    async def scenario(engine: AsyncEngine) -> None:
        with backend.gate.held():
            gone = asyncio.create_task(classify(engine, pictures(5, 1.0)))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            stays = asyncio.create_task(classify(engine, pictures(3, 1.0)))
            await started(stays)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        await stays
        assert engine.throughput.per_second(time.monotonic()) == 3

    play(backend, scenario)


def test_an_engine_that_outlives_its_event_loop_ends_in_peace() -> None:
    async def main() -> AsyncEngine:
        engine = AsyncEngine(FakeBackend, permits=8)
        engine.start()
        assert await asyncio.to_thread(engine.worker.ready.wait, PATIENCE_SECONDS)
        return engine

    worker = asyncio.run(main()).worker
    worker.put(Stop())  # the loop is closed: its messages are lost
    worker.join(PATIENCE_SECONDS)
    assert not worker.ready.is_set()


def test_a_refusal_for_lack_of_time_says_so_and_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        load = replace(Load.none(3), backlog_seconds=4.0, seconds_per_image=0.1)
        monkeypatch.setattr(type(engine.worker), "load", load)
        engine.admit(30)  # always admitted while nothing is in flight
        with pytest.raises(OverloadedError) as caught:
            engine.admit(5)
        assert (caught.value.reason, caught.value.retry_after) == ("wait", 6)
        assert "the predicted wait is 7500 ms, the limit 2000 ms" in str(caught.value)
        assert engine.admission.inflight == 30

    play(FakeBackend(), scenario, permits=64, max_wait_seconds=2)


def test_the_engine_says_how_many_permits_there_are() -> None:
    """Which may be fewer than were asked for."""

    async def scenario(engine: AsyncEngine) -> None:
        assert engine.admission.permits == 12
        engine.admit(12)
        with pytest.raises(OverloadedError):
            engine.admit(1)

    play(FakeBackend(capacity=12), scenario, permits=1000)


def test_stopping_answers_what_is_in_flight() -> None:
    backend = FakeBackend(max_batch=2)

    async def scenario(engine: AsyncEngine) -> None:
        with backend.gate.held():
            pending = asyncio.create_task(classify(engine, pictures(7, 0.2, 0.2, 0.2)))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            stopping = asyncio.create_task(engine.stop())
            await asyncio.sleep(0)
        await stopping
        assert (await pending).exit.tolist() == [3] * 7
        with pytest.raises(EngineDownError):
            engine.admit(1)
        with pytest.raises(EngineDownError):
            await classify(engine, pictures(1, 1.0))

    play(backend, scenario)


def unready(build: Callable[[], StageBackend], scenario: Scenario) -> None:
    """A scenario on an engine that has just been started; it ends when the scenario does."""

    async def main() -> None:
        engine = AsyncEngine(build, permits=8)
        engine.start()
        await scenario(engine)
        await engine.stop()

    asyncio.run(main())


def test_until_it_is_warm_it_is_starting() -> None:
    may_build = threading.Event()

    def build() -> StageBackend:
        assert may_build.wait(PATIENCE_SECONDS)
        return FakeBackend()

    async def scenario(engine: AsyncEngine) -> None:
        assert not engine.up
        assert not engine.down
        with pytest.raises(StartingError) as caught:
            engine.admit(1)
        assert caught.value.retry_after >= 1
        may_build.set()
        assert await asyncio.to_thread(engine.worker.ready.wait, PATIENCE_SECONDS)
        assert engine.up
        engine.admit(1)

    unready(build, scenario)


def test_an_engine_that_cannot_start_is_down_and_tells_clients_nothing_of_why() -> None:
    def build() -> StageBackend:
        raise DeviceError("no kernel image at /home/someone/secret.so")

    async def scenario(engine: AsyncEngine) -> None:
        died = asyncio.Event()
        details = []

        def watch(message: Outbound) -> None:
            if isinstance(message, Died):
                details.append(message.detail)
                died.set()

        engine.watch(watch)
        await asyncio.wait_for(died.wait(), PATIENCE_SECONDS)
        assert engine.down
        assert not engine.up
        assert "secret" in details[0], "its owner gets the cause"
        with pytest.raises(EngineDownError) as caught:
            engine.admit(1)
        assert "secret" not in str(caught.value)

    unready(build, scenario)


def test_an_engine_that_dies_fails_every_request() -> None:
    backend = FakeBackend(max_batch=1)

    def broken(stage: int, pixels: NDArray[np.uint8]) -> None:
        raise DeviceError("secret")

    async def scenario(engine: AsyncEngine) -> None:
        backend.fail = broken
        with backend.gate.held():
            tasks = [asyncio.create_task(classify(engine, pictures(1, 1.0))) for _ in range(10)]
            await started(*tasks)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineDownError] * 10
        assert not any("secret" in str(outcome) for outcome in outcomes)
        assert engine.down

    play(backend, scenario, all_released=False)


def test_throughput_is_over_the_window() -> None:
    throughput = Throughput()
    assert throughput.per_second(now=100.0) == 0
    throughput.count(50, now=100.0)
    assert throughput.per_second(now=100.1) == 50, "the first second counts as one"
    throughput.count(150, now=104.0)
    assert throughput.per_second(now=105.0) == pytest.approx(200 / 5)
    assert throughput.per_second(now=110.0) == pytest.approx(200 / 10)
    assert throughput.per_second(now=112.0) == pytest.approx(150 / 8), "the first ones are forgotten"
    assert throughput.per_second(now=1000.0) == 0


async def lines(engine: AsyncEngine, pixels: NDArray[np.uint8], **parameters: Any) -> list[tuple[int, int, Reason]]:
    """A stream to its end: index, exit and reason of everything that lands."""
    given = ExitParameters(np.array([0.5, 0.5]), **{"min_exit": 0, "max_exit": 3, "stream": True, **parameters})
    with engine.admit(len(pixels)) as permits:
        landed = [part async for part in engine.stream(pixels, given, permits)]
    return [
        (int(part.index[i]), int(part.exit[i]), Reason(part.reason[i]))
        for part in landed
        for i in range(len(part.index))
    ]


def test_a_stream_tells_every_exit_of_every_image_in_order_and_ends() -> None:
    async def scenario(engine: AsyncEngine) -> None:
        told = await lines(engine, np.stack([picture(0.2, 0.2, 0.6), picture(1.0), picture(0.2, 0.8)]))
        assert sorted(told, key=lambda line: line[1]) == told, "one batch per stage"
        by_image = {index: [(exit, reason) for i, exit, reason in told if i == index] for index in range(3)}
        assert by_image == {
            0: [(1, Reason.GOES_ON), (2, Reason.GOES_ON), (3, Reason.FINAL)],
            1: [(1, Reason.CONFIDENT)],
            2: [(1, Reason.GOES_ON), (2, Reason.CONFIDENT)],
        }

    play(FakeBackend(), scenario)


def test_a_stream_of_what_has_expired_ends_too() -> None:
    async def scenario(engine: AsyncEngine) -> None:
        assert await lines(engine, pictures(1, 1.0), deadline=0.0) == [(0, 0, Reason.EXPIRED)]
        assert await lines(engine, pictures(1, 0.2), deadline=0.0, min_exit=1) == [
            (0, 1, Reason.GOES_ON),
            (0, 1, Reason.DEADLINE),
        ]

    play(FakeBackend(), scenario)


def test_a_failure_amid_a_stream_comes_after_what_had_landed() -> None:
    backend = FakeBackend()

    def broken(stage: int, pixels: NDArray[np.uint8]) -> None:
        if stage == 1:
            raise DeviceError("secret")

    async def scenario(engine: AsyncEngine) -> None:
        backend.fail = broken
        parameters = ExitParameters(np.array([0.5, 0.5]), 0, 3, stream=True)
        stream = engine.stream(np.stack([picture(0.2), picture(1.0)]), parameters, engine.admit(2))
        part = await anext(stream)
        landed = zip(part.index.tolist(), part.reason.tolist(), strict=True)
        assert sorted(landed) == [(0, Reason.GOES_ON), (1, Reason.CONFIDENT)]
        with pytest.raises(EngineDownError):
            await anext(stream)
        assert engine.up

    play(backend, scenario)


def cancelled_images(engine: AsyncEngine) -> dict[str, int]:
    """Filled while the engine runs: images by where they were cancelled."""
    counts: dict[str, int] = {}

    def observe(message: Outbound) -> None:
        if isinstance(message, Cancelled):
            counts[message.where] = counts.get(message.where, 0) + message.images

    engine.watch(observe)
    return counts


def test_leaving_a_stream_frees_the_images_that_still_wait() -> None:
    backend, left = FakeBackend(), threading.Event()

    def second_stage_waits(stage: int, pixels: NDArray[np.uint8]) -> None:
        assert stage == 0 or left.wait(PATIENCE_SECONDS)

    async def scenario(engine: AsyncEngine) -> None:
        counts = cancelled_images(engine)
        backend.fail = second_stage_waits
        parameters = ExitParameters(np.array([0.5, 0.5]), 0, 3, stream=True)
        stream = engine.stream(np.stack([picture(0.2), picture(1.0)]), parameters, engine.admit(2))
        first = await anext(stream)
        assert sorted(first.index.tolist()) == [0, 1]
        assert engine.admission.inflight == 1, "an answered image's permit is returned while the stream goes on"
        await stream.aclose()
        await asyncio.sleep(0)  # it is sent at the end of this turn of the loop
        left.set()
        await classify(engine, pictures(1, 1.0))
        assert 2 not in {stage for stage, _ in backend.batches}
        assert counts["queue"] == 1
        assert counts.get("batch", 0) == 0, "the other had been answered"

    play(backend, scenario)


def test_every_cancelled_image_is_counted_once() -> None:
    """Waiting images leave the queue; running ones are counted when the batch ends, wherever they would go."""
    backend = FakeBackend(max_batch=4)

    async def scenario(engine: AsyncEngine) -> None:
        counts = cancelled_images(engine)
        with backend.gate.held():
            running = asyncio.create_task(classify(engine, np.stack([picture(1.0), picture(0.2), picture(1.0)])))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            waiting = asyncio.create_task(classify(engine, pictures(7, 0.2)))
            await started(waiting)
            for task in (running, waiting):
                task.cancel()
            await asyncio.gather(running, waiting, return_exceptions=True)
        await classify(engine, pictures(1, 1.0))
        assert counts == {"batch": 2, "queue": 1 + 7}

    play(backend, scenario)


def test_shadows_take_no_permit_and_do_not_hold_up_the_end() -> None:
    backend = FakeBackend(capacity=12)

    async def scenario(engine: AsyncEngine) -> None:
        checked = asyncio.Event()

        def observe(message: Outbound) -> None:
            if isinstance(message, Shadowed):
                checked.set()

        engine.watch(observe)
        await classify(engine, pictures(8, 1.0))
        await asyncio.wait_for(checked.wait(), PATIENCE_SECONDS)
        with pytest.raises(OverloadedError):
            engine.admit(9)
        await asyncio.gather(classify(engine, pictures(8, 1.0)), engine.stop())
        assert engine.down
        assert not engine.worker.ready.is_set()

    play(backend, scenario, all_released=False, permits=8, shadow_every=1)


async def until_level(engine: AsyncEngine, clock: Clock, wanted: Callable[[int], bool]) -> None:
    """Until the brown-out level is as wanted, on a clock that hurries."""
    for _ in range(1000):
        if wanted(engine.brownout.level):
            return
        clock.ahead += 0.9 * overload.FROZEN_SECONDS
        await asyncio.sleep(async_engine.LOOK_SECONDS / 10)
    raise AssertionError("the level does not move")


def test_permits_that_run_out_are_overload_however_short_the_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast engine's permits are all taken before anyone has waited for long."""
    backend, clock = FakeBackend(), Clock()
    monkeypatch.setattr(async_engine, "time", clock)
    monkeypatch.setattr(async_engine, "LOOK_SECONDS", 0.001)

    async def scenario(engine: AsyncEngine) -> None:
        permits = engine.admit(60)
        await asyncio.sleep(3 * async_engine.LOOK_SECONDS)
        assert engine.brownout.level == 0, "to have images decoded faster, no cheaper point helps"
        with backend.gate.held():
            parameters = ExitParameters(np.array([0.5, 0.5]), 1, 3)
            inside = asyncio.create_task(engine.classify(pictures(60, 1.0), parameters, permits))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            with engine.admit(4):
                assert engine.brownout.level == 7, "at once, however seldom it is looked at"
        await inside
        await until_level(engine, clock, lambda level: level == 0)

    play(backend, scenario, permits=64, brownout_seconds=1e6)


def test_the_oldest_wait_raises_the_level_and_calm_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, clock = FakeBackend(max_batch=1), Clock()
    monkeypatch.setattr(async_engine, "time", clock)
    monkeypatch.setattr(async_engine, "LOOK_SECONDS", 0.001)

    async def scenario(engine: AsyncEngine) -> None:
        step = threading.Semaphore(0)
        backend.fail = lambda stage, pixels: (step.acquire(timeout=PATIENCE_SECONDS), None)[1]
        waiting = asyncio.create_task(classify(engine, pictures(3, 1.0)))
        step.release()  # the second batch is on its way, and the third image waits in sight
        await until_level(engine, clock, lambda level: level == LEVELS)
        for _ in range(2):
            step.release()
        await waiting
        await until_level(engine, clock, lambda level: level == 0)

    play(backend, scenario, permits=64, brownout_seconds=60)


def test_brown_out_is_over_within_a_second_of_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, clock = FakeBackend(max_batch=1), Clock()
    monkeypatch.setattr(async_engine, "time", clock)
    monkeypatch.setattr(async_engine, "LOOK_SECONDS", 0.001)

    async def scenario(engine: AsyncEngine) -> None:
        with backend.gate.held():
            waiting = [asyncio.create_task(classify(engine, pictures(1, 1.0))) for _ in range(4)]
            await until_level(engine, clock, lambda level: level == LEVELS)
        await asyncio.gather(*waiting)
        ended = clock.monotonic()
        while engine.brownout.level and clock.monotonic() < ended + 60:
            clock.ahead += 0.1
            await asyncio.sleep(0.01)
        assert clock.monotonic() < ended + 3.0, "step by step it would take longer"

    play(backend, scenario, permits=64, brownout_seconds=0.5)


def test_a_loop_that_is_held_up_counts_as_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    monkeypatch.setattr(async_engine, "FROZEN_SECONDS", math.inf)

    async def scenario(engine: AsyncEngine) -> None:
        await asyncio.sleep(3 * async_engine.LOOK_SECONDS)
        time.sleep(0.5)
        await asyncio.sleep(async_engine.LOOK_SECONDS)
        assert engine.admission.door.lag > 0.2
        load = engine.worker.load
        assert load is not None
        assert engine.admission.wait(load) > 0.2

    play(backend, scenario, permits=64, brownout_seconds=0)


def test_a_thread_that_hangs_is_the_end_and_who_waits_learns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "longest_silence", lambda *_: 1.0)
    backend = FakeBackend()

    async def main() -> None:
        engine = AsyncEngine(lambda: backend, permits=8)
        died: list[Outbound] = []
        engine.watch(died.append)
        engine.start()
        assert await asyncio.to_thread(engine.worker.ready.wait, PATIENCE_SECONDS)
        await asyncio.sleep(2.0)
        assert engine.up, "it has nothing to do"
        with backend.gate.held():
            with pytest.raises(EngineDownError):
                await classify(engine, pictures(1, 1.0))
            assert not engine.up
            assert engine.down
            assert engine.heartbeat_age > 1
            with pytest.raises(EngineDownError):
                engine.check()
            (last,) = (message for message in died if isinstance(message, Died))
            assert "has not responded for 1." in last.detail
            await engine.stop()  # it does not wait for the thread

    asyncio.run(main())


def test_the_time_for_which_all_was_frozen_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, clock = FakeBackend(max_batch=1), Clock()
    monkeypatch.setattr(async_engine, "time", clock)

    async def scenario(engine: AsyncEngine) -> None:
        with backend.gate.held():
            waiting = asyncio.create_task(classify(engine, pictures(3, 1.0)))
            await asyncio.to_thread(backend.gate.wait_until_reached)
            clock.ahead = 3600.0
            turns = engine.turns
            while engine.turns < turns + 3:
                await asyncio.sleep(0.01)
            assert engine.brownout.level == 0
        await waiting

    play(backend, scenario, permits=64, brownout_seconds=100)
