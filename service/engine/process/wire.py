"""What crosses between an engine's process and its front ends: frames of packed messages over a Unix socket.

Pickles are safe here: the socket is in a folder that only the user of these processes can enter.
"""

import asyncio
import io
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import ExitParameters

CHUNK = 2**18
"""Bytes read at a time."""

_LENGTH = struct.Struct("<I")
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


@dataclass(frozen=True)
class Hello:
    """A front end's first message. With it comes the file of its ring (memory.Ring), which has room for `images`."""

    images: int


@dataclass(frozen=True)
class Welcome:
    """The engine's first message. With it comes the file of its board (memory.Board), where `row` is the front end's
    own.
    """

    row: int


@dataclass(frozen=True)
class SharedSubmit:
    """A `Submit` whose `images` images are in shared memory, from position `start` of the ring."""

    request: int
    start: int
    images: int
    parameters: ExitParameters
    arrival: float


def pack(value: Any) -> memoryview:
    """Any of our messages, or a container of them, as bytes."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _TABLE
    pickler.dump(value)
    return stream.getbuffer()


def unpack(frame: bytes | memoryview) -> Any:
    """What was packed; arrays are read-only."""
    return pickle.loads(frame)


def _array(data: bytes, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(data, dtype).reshape(shape)


def _reduce(array: NDArray[Any]) -> tuple[Any, ...]:
    return _array, (array.tobytes(), array.dtype if array.dtype.names else array.dtype.char, array.shape)


_TABLE: dict[type, Callable[[Any], tuple[Any, ...]]] = {np.ndarray: _reduce}
"""Twice as fast as numpy's own way, for arrays as small as ours."""


class Channel:
    """One end of a connection, which never blocks. `unsent` bytes wait until the other side reads.

    At most `files` files may come, one with a frame; the supervisor's front ends get their connections so.
    """

    def __init__(self, connection: socket.socket, *, files: float = 1) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._received = b""
        self._outbox: deque[memoryview] = deque()
        self.unsent = 0
        self._files_to_come = files
        self._files: deque[int | None] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = False  # for the other side to read, on the loop

    def fileno(self) -> int:
        return self._socket.fileno()

    def open(self, hear: Callable[[list[Any] | None], None], *, reads: int = 1) -> None:
        """On the running loop, from now on: send what waits, and let `hear` have what `receive` finds, after as many
        as `reads` calls per turn of the loop.
        """
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._hear, hear, reads)
        self.flush()

    def _hear(self, hear: Callable[[list[Any] | None], None], reads: int) -> None:
        for _ in range(reads):
            messages = self.receive()
            if messages is None and self._loop is not None:
                self._loop.remove_reader(self._socket)
            if messages != []:
                hear(messages)
            if not messages:
                return

    def receive(self) -> list[Any] | None:
        """The messages that have come, None once the other side has ended. Call it while there is something to read."""
        try:
            data = self._read()
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self._received += data
        messages, start, view = [], 0, memoryview(self._received)
        while len(view) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(view, start)[0]
            if end > len(view):
                break
            messages += unpack(view[start + _LENGTH.size : end])
            start = end
        self._received = bytes(view[start:])
        return messages

    def _read(self) -> bytes:
        if not self._files_to_come:
            return self._socket.recv(CHUNK)
        data, files, flags, _ = socket.recv_fds(self._socket, CHUNK, 1, _CLOSE_ON_EXEC)
        if files or flags & socket.MSG_CTRUNC:
            self._files.append(files[0] if files else None)
            self._files_to_come -= 1
        return data

    def take_file(self) -> int:
        """The oldest file that came, for the caller to close; ValueError if none did, or this process has too many."""
        file = self._files.popleft() if self._files else None
        if file is None:
            raise ValueError("no file came with the message")
        return file

    def send(self, messages: Sequence[Any], file: int | None = None) -> bool:
        """Send messages, in one frame, and with it a file's descriptor if nothing waits; False if that has no room."""
        packed = pack(messages)
        frame = memoryview(_LENGTH.pack(len(packed)) + packed)
        if file is not None:
            try:
                if self._outbox:
                    return False
                frame = frame[socket.send_fds(self._socket, [frame], [file]) :]
            except OSError:  # full, or the other side has ended, as `receive` finds
                return False
        if frame:
            self._outbox.append(frame)
            self.unsent += len(frame)
            self.flush()
        return True

    def flush(self) -> None:
        """Send what waits, as much as fits, and the rest when the other side has read, on the loop if there is one."""
        try:
            while self._outbox:
                sent = self._socket.send(self._outbox[0])
                self.unsent -= sent
                if sent < len(self._outbox[0]):
                    self._outbox[0] = self._outbox[0][sent:]
                else:
                    self._outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()
            self.unsent = 0
        if self._loop is not None and self._waiting != bool(self._outbox):
            self._waiting = bool(self._outbox)
            if self._waiting:
                self._loop.add_writer(self._socket, self.flush)
            else:
                self._loop.remove_writer(self._socket)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        for file in self._files:
            if file is not None:
                os.close(file)
        self._socket.close()
