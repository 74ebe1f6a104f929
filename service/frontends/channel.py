"""Between the supervisor and a front end: accepted connections one way, messages both ways, on one local socket.

Messages are pickles, which is safe here: only the supervisor and the child it started can write to this socket.
"""

import asyncio
import pickle
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

PIECE = 2**15
"""Bytes of a message per packet: the socket's buffer holds several."""

TURN = 64
"""Packets read per turn of the event loop."""

_CONNECTION, _MORE, _LAST = b"c", b"m", b"l"


@dataclass(frozen=True)
class Drain:
    """To a front end: answer what is in flight, and end."""


@dataclass(frozen=True)
class Failed:
    """From a front end that ends: why, and whether only the caller can change it."""

    detail: str
    by_caller: bool


@dataclass(frozen=True)
class Ask:
    """From a front end: the service's `metrics` or `statistics`, as an `Answer` with this number."""

    number: int
    what: str


@dataclass(frozen=True)
class Answer:
    number: int
    content: Any


@dataclass(frozen=True)
class Count:
    """To a front end: what have you counted? It says so in a `Counted` with this number."""

    number: int


@dataclass(frozen=True)
class Counted:
    """From a front end: its snapshot (telemetry/totals.py); with number 0 one that was not asked for."""

    number: int
    snapshot: Any


class Receiver(Protocol):
    """Who gets what arrives; called on the event loop."""

    def on_connection(self, connection: socket.socket | None) -> None:
        """None: it is lost, as this process has too many open files."""

    def on_message(self, message: Any) -> None: ...

    def on_end(self) -> None:
        """The other side has ended."""


class Channel:
    """One end. Nothing blocks: what finds no room goes later, in its order."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox: deque[bytes] = deque()
        self._pieces: list[bytes] = []

    def open(self, receiver: Receiver) -> None:
        """Read from now on, on the running loop."""
        self._receiver, self._loop = receiver, asyncio.get_running_loop()
        self._loop.add_reader(self._end, self._read)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
        self._end.close()

    @property
    def idle(self) -> bool:
        """Whether all messages have gone."""
        return not self._outbox

    def send(self, message: Any) -> None:
        content = pickle.dumps(message)
        pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
        self._outbox += [_MORE + piece for piece in pieces[:-1]]
        self._outbox.append(_LAST + pieces[-1])
        self._flush()

    def hand_over(self, connection: socket.socket) -> bool:
        """Give the other side a connection, whose copy here may be closed then; False if there is no room for it."""
        try:
            socket.send_fds(self._end, [_CONNECTION], [connection.fileno()])
        except OSError:  # full, or the other side has ended
            return False
        return True

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._end.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            if self._loop is not None:
                self._loop.add_writer(self._end, self._flush)
            return
        except OSError:  # the other side has ended, as reading will find
            self._outbox.clear()
        if self._loop is not None:
            self._loop.remove_writer(self._end)

    def _read(self) -> None:
        assert self._loop is not None
        for _ in range(TURN):
            try:
                packet, files, *_rest = socket.recv_fds(self._end, PIECE + 1, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                packet, files = b"", []
            if not packet:
                self._loop.remove_reader(self._end)
                self._receiver.on_end()
                return
            self._take(packet, files)

    def _take(self, packet: bytes, files: list[int]) -> None:
        kind, piece = packet[:1], packet[1:]
        if kind == _CONNECTION:
            self._receiver.on_connection(socket.socket(fileno=files[0]) if files else None)
            return
        self._pieces.append(piece)
        if kind == _LAST:
            content, self._pieces = b"".join(self._pieces), []
            self._receiver.on_message(pickle.loads(content))
