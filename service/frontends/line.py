"""Between the supervisor and a front end: connections, messages and questions, both ways."""

import asyncio
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msmlp.service.engine.process.wire import Channel

READS = 64
"""Reads per turn of the event loop; one brings at most one connection."""


@dataclass(frozen=True)
class Connection:
    """To a front end: serve this; its file comes along. From a front end: let another serve it. See `Kept`."""

    kept: bool = False


class Kept(socket.socket):
    """A connection on which requests have been answered before: it is not new, but waits for its next."""


@dataclass(frozen=True)
class GiveBack:
    """To a front end: give back `number` connections, because others have fewer. It replaces an earlier message, except
    for what has been given back already.
    """

    number: int


@dataclass(frozen=True)
class Drain:
    """To a front end: say that it is not ready, but go on."""


@dataclass(frozen=True)
class Close:
    """To a front end: answer what is in flight, for `--shutdown-seconds`, and end."""


@dataclass(frozen=True)
class Cut:
    """To a front end: refuse what is in flight, and end."""


@dataclass(frozen=True)
class Finished:
    """From a front end that ends in order: how many requests it has `cut`."""

    cut: int


@dataclass(frozen=True)
class Failed:
    """From a front end that ends: why, and whether only the caller can change it."""

    detail: str
    by_caller: bool


@dataclass(frozen=True)
class Counted:
    """From a front end, unasked: its snapshot (telemetry/totals.py)."""

    snapshot: Any


@dataclass(frozen=True)
class Ask:
    """A front end asks for the service's `metrics` or `statistics`, or a `reload`; the supervisor for a front end's
    `snapshot`, or that it begins to `serve` everywhere, or begins to `retire`: to serve nothing new.
    """

    number: int
    what: str


@dataclass(frozen=True)
class Answer:
    number: int
    content: Any


@dataclass(frozen=True)
class Lost:
    """Heard instead of a connection: there was no file left for it in this process."""


@dataclass(frozen=True)
class Ended:
    """Heard last: the other side has ended."""


class Line:
    """One end. Pickles are safe here: only the supervisor and the child that it started hold this socket."""

    def __init__(self, end: socket.socket) -> None:
        self._channel = Channel(end, files=float("inf"))
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}

    def open(self, hear: Callable[[Any], None]) -> None:
        """From now on `hear` gets, on the running loop, what comes: messages, but for answers, and connections as
        sockets.
        """
        self._tell = hear
        self._channel.open(self._hear, reads=READS)

    def close(self) -> None:
        self._channel.close()

    @property
    def idle(self) -> bool:
        """Whether all messages have gone."""
        return not self._channel.unsent

    def send(self, message: Any) -> None:
        self._channel.send([message])

    def hand_over(self, connection: Any, *, kept: bool) -> bool:
        """Give the other side a socket, also a transport's, whose copy here may be closed then; False if there is no
        room for it.
        """
        return self._channel.send([Connection(kept)], connection.fileno())

    async def ask(self, what: str, seconds: float) -> Any:
        """What the other side answers; None if it has ended, or takes longer."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(Ask(number, what))
        try:
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def _answered(self, number: int, content: Any) -> None:
        waiting = self._asked.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(content)

    def _hear(self, messages: list[Any] | None) -> None:
        if messages is None:
            for number in self._asked:
                self._answered(number, None)
            self._tell(Ended())
            return
        for message in messages:
            if isinstance(message, Connection):
                self._tell(self._connection(Kept if message.kept else socket.socket))
            elif isinstance(message, Answer):
                self._answered(message.number, message.content)
            else:
                self._tell(message)

    def _connection(self, kind: type[socket.socket]) -> socket.socket | Lost:
        try:
            return kind(fileno=self._channel.take_file())
        except ValueError:
            return Lost()
