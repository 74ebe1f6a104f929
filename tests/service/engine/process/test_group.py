"""Several engines as one: who gets a request, what all of them are together, and what remains when one is gone."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Counts,
    Died,
    ExitParameters,
    Failed,
    Inbound,
    Load,
    Outbound,
    Ready,
    Stop,
    Submit,
)
from msmlp.service.engine.process.group import EngineGroup, ProcessWorker
from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.engine.process.remote import RemoteWorker
from msmlp.service.engine.transport import Send
from tests.engines import SHAPE, BreaksLater, Build, OnLoop, Talk, host_of
from tests.fakes import pictures
from tests.servers import wait_until

RESTARTING, OUT = Died("killed", restarting=True), Died("gone")


class FakeRemote:
    """An engine whose load a test sets, and who keeps what it is sent."""

    def __init__(self, send: Send) -> None:
        self.say = send
        self.got: list[Inbound] = []
        self.inside: dict[int, int] = {}
        self.permits = self.images = 0
        self.load: Load | None = None
        self.counts = Counts()
        self.state, self.restarts = "up", 2
        self.age, self.ready = 0.0, threading.Event()

    def up(self, backlog: float = 0.0, permits: int = 10, **more: Any) -> None:
        self.permits = permits
        self.load = Load((1, 2), (5.0, np.inf), backlog, **{"seconds_per_image": 0.1, **more})
        self.say([Ready("fake", "none", permits)])

    def down(self, died: Died) -> None:
        self.load = None
        self.say([died])

    def put(self, message: Inbound) -> None:
        self.got.append(message)
        if isinstance(message, Submit):
            self.inside[message.request] = len(message.pixels)
            self.images += len(message.pixels)

    def share(self, counts: Counts) -> None:
        self.counts = counts

    def look(self, now: float) -> float:
        return self.age


def group_of(count: int) -> tuple[EngineGroup, list[FakeRemote], list[Outbound]]:
    said: list[Outbound] = []
    made: list[FakeRemote] = []

    def make(send: Send) -> Any:
        made.append(FakeRemote(send))
        return made[-1]

    connect: list[Callable[[Send], Any]] = [make] * count
    return EngineGroup(connect, said.extend), made, said


def submit(request: int, images: int = 1) -> Submit:
    return Submit(request, pictures(images, 1.0), ExitParameters(np.array([0.5, 0.5]), 1, 3), 0.0)


def test_each_request_goes_where_it_would_wait_the_least() -> None:
    group, (one, other, starting), _ = group_of(3)
    one.up(backlog=0.5)
    other.up(backlog=0.4)
    group.put(submit(1))
    other.up(backlog=0.6)
    group.put(submit(2))
    other.up(backlog=0.5)
    group.put(submit(3, images=2))
    group.put(submit(4))
    assert [message.request for message in one.got if isinstance(message, Submit)] == [2, 3]
    assert [message.request for message in other.got if isinstance(message, Submit)] == [1, 4]
    assert starting.got == []
    group.put(Cancel(3))
    assert Cancel(3) in one.got
    assert Cancel(3) not in other.got
    group.put(Stop())
    assert all(each.got[-1] == Stop() for each in (one, other, starting))


def test_the_slower_device_gets_a_request_only_when_the_faster_one_would_take_longer() -> None:
    group, (fast, slow), _ = group_of(2)
    fast.up(backlog=0.9, seconds_per_image=0.1)
    slow.up(backlog=0.0, seconds_per_image=0.5)
    group.put(submit(1, images=2))
    group.put(submit(2, images=3))
    assert [len(each.got) for each in (fast, slow)] == [1, 1]
    assert fast.got[0].request == 2  # type: ignore[union-attr]


def test_a_full_engine_gets_nothing_while_another_has_room() -> None:
    group, (full, other), _ = group_of(2)
    full.up(backlog=0.0, permits=2)
    other.up(backlog=9.0)
    for request in range(3):
        group.put(submit(request))
    assert [len(each.got) for each in (full, other)] == [2, 1]


def test_it_is_ready_while_one_is_and_dies_with_the_last() -> None:
    group, (one, other), said = group_of(2)
    one.up(permits=10)
    assert group.ready.is_set()
    other.up(permits=6)
    one.down(RESTARTING)
    assert group.ready.is_set()
    one.down(OUT)
    other.down(RESTARTING)
    assert not group.ready.is_set()
    other.up(permits=6)
    other.down(RESTARTING)
    other.down(OUT)
    ready = [Ready("fake", "none", permits) for permits in (10, 16, 6, 6, 6)]
    assert said == [*ready[:4], RESTARTING, ready[4], RESTARTING, OUT]


def test_engines_that_were_never_ready_say_nothing_until_all_are_out() -> None:
    group, (one, other), said = group_of(2)
    one.down(OUT)
    assert said == []
    other.down(OUT)
    assert said == [OUT]
    assert not group.ready.is_set()


def test_its_load_is_what_all_have_waiting_and_a_new_image_would_meet() -> None:
    group, (one, other), _ = group_of(2)
    assert group.load is None
    counts = Counts(5, 4, 3, 2)
    one.up(
        backlog=0.5, seconds_per_image=0.1, work_seconds=3, prediction_margin=1.5, submits=1, images=2, others=counts
    )
    assert group.load == replace(one.load, work_seconds=1.5)
    other.up(backlog=0.2, seconds_per_image=0.4, work_seconds=5, prediction_margin=1.2, submits=3, images=4)
    load = group.load
    assert load is not None
    assert (load.queued, load.oldest) == ((2, 4), (5.0, np.inf))
    assert (load.backlog_seconds, load.work_seconds, load.prediction_margin) == (0.2, 4, 1.5)
    assert load.seconds_per_image == pytest.approx(0.08), "10 and 2.5 images per second"
    assert (load.submits, load.images, load.others) == (4, 6, counts)


def test_their_work_goes_on_when_one_ends_or_begins_anew() -> None:
    group, (one, other), _ = group_of(2)

    def work() -> float:
        assert group.load is not None
        return group.load.work_seconds

    one.up(work_seconds=2000)
    other.up(work_seconds=100)
    assert work() == 1050
    other.down(OUT)
    assert work() == 1050, "what it did stays done"
    one.up(work_seconds=10)
    assert work() == 1055, "it began anew"


def test_the_silence_of_one_that_restarts_says_nothing_of_the_others() -> None:
    group, (away, up), _ = group_of(2)
    away.age, up.age = 30.0, 0.2
    assert group.look(0.0) == 30.0, "nobody is there"
    up.ready.set()
    assert group.look(0.0) == 0.2
    away.ready.set()
    assert group.look(0.0) == 30.0, "it hangs"


def test_their_states_and_restarts_are_told_together() -> None:
    group, (one, _), _ = group_of(2)
    one.state = "out"
    assert (group.states, group.restarts) == (["out", "up"], 4)


def test_every_engine_knows_what_this_front_end_has_in_flight() -> None:
    group, made, _ = group_of(2)
    group.share(Counts(1, 2, 3, 4))
    assert [each.counts for each in made] == [Counts(1, 2, 3, 4)] * 2


# --- two real engines ------------------------------------------------------------------------------------------------


def both(builds: tuple[Build, Build], send: Send) -> OnLoop:
    hosts = EngineHosts([host_of(build, permits=8) for build in builds])
    return OnLoop(lambda heard: ProcessWorker(hosts, partial(RemoteWorker, ring_images=64, **SHAPE), heard), send)


def test_one_engine_goes_on_while_another_leaves_service() -> None:
    breaks, stays = BreaksLater(capacity=8), Build(capacity=8)
    talk = Talk(both, (breaks, stays))
    while talk.hear(Ready).permits < 16:
        pass
    assert isinstance(talk.worker, OnLoop)
    worker: Any = talk.worker.worker
    assert worker.states == ["up", "up"]
    assert len(set(worker.pids)) == 2
    breaks.broken.value = 1
    with breaks.gate.held(), stays.gate.held():
        for request in (1, 2):
            talk.submit(request, pictures(8, 1.0))  # each fills an engine
        for build in (breaks, stays):
            build.gate.wait_until_reached()
        os.kill(worker.hosts.all[0].pid, signal.SIGKILL)
        (lost,) = talk.hear(Failed).requests.tolist()
        assert talk.hear(Ready).permits == 8
    assert talk.hear(Answers).request.tolist() == [3 - lost] * 8
    wait_until(lambda: worker.states == ["out", "up"])
    assert worker.restarts == 3
    for request in range(4, 8):
        talk.submit(request, pictures(8, 1.0))
        assert talk.hear(Answers).request.tolist() == [request] * 8
    assert talk.worker.ready.is_set()
    said = talk.stop()
    assert said[-1] == Died("stopped")
    assert worker.pids == []


def test_all_engines_end_within_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [100.0], list[float]()
    monkeypatch.setattr("msmlp.service.engine.process.group.time", SimpleNamespace(monotonic=lambda: now[0]))

    def join(timeout: float) -> None:
        waited.append(timeout)
        now[0] += 4.0

    group, engines, _ = group_of(3)
    for engine in engines:
        monkeypatch.setattr(engine, "join", join, raising=False)
    group.join(6.0)
    assert waited == [6.0, 2.0, 0.0]
