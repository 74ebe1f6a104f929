"""The core's end of the transport, over real sockets in this process, where a test can be every front end."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msmlp.service.engine.heartbeat import SILENCE_SECONDS
from msmlp.service.engine.messages import (
    HISTORY,
    Answers,
    Cancel,
    CancelRange,
    Counts,
    Died,
    ExitParameters,
    Load,
    Ready,
    Stop,
    Submit,
)
from msmlp.service.engine.process import peers
from msmlp.service.engine.process.memory import Board, Ring, new_file
from msmlp.service.engine.process.port import ChildPort
from msmlp.service.engine.process.wire import Channel, Hello, SharedSubmit, Welcome
from tests.fakes import pictures

READY = Ready("fake", "none", 8)
PARAMETERS = ExitParameters(np.array([0.5, 0.5]), 1, 3)


@dataclass
class Engine:
    port: ChildPort
    address: str
    host: Connection
    board: Board
    channels: list[Channel] = field(default_factory=list)
    """To be closed at the end."""


class FrontEnd:
    """One that speaks by hand. It is welcome once the engine has looked."""

    def __init__(self, engine: Engine, *, images: int = 8) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(engine.address)
        self.channel = Channel(connection)
        engine.channels.append(self.channel)
        file = new_file(Ring.bytes(images, (8, 8, 3)))
        self.channel.send([Hello(images)], file)
        self.ring = Ring(file, images=images, shape=(8, 8, 3))

    def submit(self, request: int, start: int, images: int) -> None:
        self.ring.write(start, pictures(images, 1.0, label=request))
        self.channel.send([SharedSubmit(request, start, images, PARAMETERS, 1.5)])

    def hear(self) -> list[Any]:
        return self.channel.receive() or []


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.chdir(tmp_path)  # a socket's path has a limit
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("engine")
        listener.listen()
        here, theirs = Pipe()
        file = new_file(Board.bytes(3))
        board = Board(os.dup(file), 3)
        port = ChildPort(listener, theirs, file, stages=3, shape=(8, 8, 3), most_unsent=100_000)
        with here, theirs:
            made = Engine(port, "engine", here, board)
            yield made
        for channel in [*made.channels, *(peer.channel for peer in port._peers.values())]:
            channel.close()


def front_ends(engine: Engine, count: int) -> list[FrontEnd]:
    made = []
    for _ in range(count):
        made.append(FrontEnd(engine))
        look(engine)
    return made


def look(engine: Engine) -> list[Any]:
    """All that has come: a look may find a connection, the next its first message."""
    return [message for _ in range(3) for message in engine.port.take(block=False)]


def answers(count: int, request: int) -> Answers:
    ones = np.ones(count, dtype=np.int64)
    return Answers(
        ones * request,
        ones,
        ones,
        ones.astype(np.int8),
        np.zeros((count, 4), np.float32),
        np.zeros((count, 3), HISTORY),
    )


def test_front_ends_are_told_apart_though_they_use_the_same_numbers(engine: Engine) -> None:
    one, other = front_ends(engine, 2)
    one.submit(5, 0, 2)
    other.submit(5, 6, 4)
    first, second = look(engine)
    assert isinstance(first, Submit)
    assert (first.request, second.request) == (peers.number(0, 5), peers.number(1, 5))
    assert np.array_equal(first.pixels, pictures(2, 1.0, label=5))
    assert np.array_equal(second.pixels, pictures(4, 1.0, label=5)), "around the end of the ring"
    assert (first.parameters.min_exit, first.arrival) == (1, 1.5)
    other.channel.send([Cancel(5)])
    assert look(engine) == [Cancel(peers.number(1, 5))]


def test_ready_reaches_those_who_came_before_and_those_who_come_after(engine: Engine) -> None:
    early = FrontEnd(engine)
    look(engine)
    assert early.hear() == [Welcome(0)]
    engine.port.send([READY])
    assert early.hear() == [READY]
    late = FrontEnd(engine)
    look(engine)
    assert late.hear() + late.hear() == [Welcome(1), READY]
    assert engine.host.recv() == READY
    engine.port.send([Died("how")])
    assert early.hear() == late.hear() == [Died("how")]
    assert engine.host.recv() == Died("how")


def test_the_host_ends_it(engine: Engine) -> None:
    engine.host.send("stop")
    assert engine.port.take(block=True) == [Stop()]


def test_room_in_a_ring_is_given_back_and_a_load_includes_what_was_received(engine: Engine) -> None:
    (front_end,) = front_ends(engine, 1)
    front_end.hear()
    board = Board(front_end.channel.take_file(), 3)
    front_end.submit(1, 0, 3)
    look(engine)
    assert front_end.ring.received == (0, 0)
    engine.port.publish(Load((3, 0, 0), (1.0, np.inf, np.inf), backlog_seconds=0.5))
    assert front_end.ring.received == (1, 3)
    assert board.published(0, (0, 0)).backlog_seconds == 0.5


def test_the_counts_of_one_that_has_left_are_gone_and_its_requests_are_cancelled(engine: Engine) -> None:
    one, other = front_ends(engine, 2)
    boards = []
    for each in (one, other):
        (welcome,) = each.hear()
        boards.append((Board(each.channel.take_file(), 3), welcome.row))
    engine.port.publish(Load.none(3))
    boards[0][0].count(boards[0][1], Counts(inflight=5))
    assert boards[1][0].published(boards[1][1], (0, 0)).others == Counts(inflight=5)
    one.channel.close()
    assert look(engine) == [peers.all_of(0)]
    assert boards[1][0].published(boards[1][1], (0, 0)).others == Counts()
    third = FrontEnd(engine)
    look(engine)
    assert third.hear() == [Welcome(0)], "the row is free again"
    third.submit(1, 0, 1)
    (submit,) = look(engine)
    assert submit.request == peers.number(2, 1), "but no number is used twice"


def test_one_that_does_not_read_is_left_and_the_others_are_served(engine: Engine) -> None:
    deaf, other = front_ends(engine, 2)
    other.hear()
    sent = 0
    while not (left := [message for message in look(engine) if isinstance(message, CancelRange)]):
        engine.port.send([answers(100, peers.number(0, 1)), answers(1, peers.number(1, sent))])
        assert other.hear()[0].request.tolist() == [sent]
        sent += 1
        assert sent < 10_000
    assert left == [peers.all_of(0)]
    assert deaf.channel.receive(), "what was sent before"


def test_one_that_reads_slowly_gets_everything_in_order(engine: Engine) -> None:
    (slow,) = front_ends(engine, 1)
    said, heard = 0, []
    while not engine.port._peers[next(iter(engine.port._peers))].channel.unsent:
        engine.port.send([answers(50, peers.number(0, said))])
        said += 1
    while len(heard) < 1 + said:
        heard += slow.hear()
        engine.port.take(block=False)
    assert [message.request[0] for message in heard[1:]] == list(range(said))


@pytest.mark.parametrize("words", [[SharedSubmit(1, 0, 1, PARAMETERS, 0.0)], [Hello(10**9)], 3])
def test_one_that_makes_no_sense_is_left(engine: Engine, words: Any, caplog: pytest.LogCaptureFixture) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(engine.address)
    stranger = Channel(connection)
    stranger.send(words, new_file(100))
    assert look(engine) == [peers.all_of(0)]
    assert stranger.receive() is None
    stranger.close()
    assert "a front end sent an invalid message: closing its connection" in caplog.text


def test_every_call_is_a_sign_of_life_and_so_is_waiting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Front ends and the host may be silent for hours."""
    port, board = engine.port, engine.board
    for call in (
        lambda: port.publish(Load.none(3)),
        lambda: port.send([READY]),
        lambda: port.take(block=False),
        lambda: (engine.host.send("stop"), port.take(block=True)),
        lambda: port.drain(0.0) or port.take(block=False),
    ):
        before = board.beat
        call()
        assert board.beat > before
    asked = 0

    class Quiet:
        """A poll in which nothing comes for some time."""

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            nonlocal asked
            assert 0 < timeout <= 1e3 * SILENCE_SECONDS / 4
            asked += 1
            assert board.beat == before + asked - 1
            if asked < 10:
                return []
            engine.host.send("stop")
            return [(port._host.fileno(), 1)]

    before = board.beat
    monkeypatch.setattr(port, "_poll", Quiet())
    assert port.take(block=True) == [Stop()]
    assert asked == 10
