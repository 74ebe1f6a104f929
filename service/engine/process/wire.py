"""What crosses between an engine's process and its front ends: frames of packed messages over a Unix socket.

Pickles are safe here: the socket is in a folder that only the user of these processes can enter.
"""

import io
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import ExitParameters

CHUNK = 2**18
"""Bytes read at a time."""

_LENGTH = struct.Struct("<I")


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

    With its first message each side sends the descriptor of a file.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._received = b""
        self._outbox: deque[memoryview] = deque()
        self.unsent = 0
        self._file: int | None = None
        self._file_came = False

    def fileno(self) -> int:
        return self._socket.fileno()

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
        if self._file_came:
            return self._socket.recv(CHUNK)
        data, files, _, _ = socket.recv_fds(self._socket, CHUNK, 1)
        if files:
            self._file, self._file_came = files[0], True
        return data

    def take_file(self) -> int:
        """The file that came, for the caller to close; ValueError if none did."""
        file, self._file = self._file, None
        if file is None:
            raise ValueError("no file came with the first message")
        return file

    def send(self, messages: Sequence[Any], file: int | None = None) -> None:
        """Send messages, in one frame, and with the first of all frames a file's descriptor."""
        packed = pack(messages)
        frame = memoryview(_LENGTH.pack(len(packed)) + packed)
        if file is not None:
            with suppress(OSError):  # here and below: `receive` finds the end
                frame = frame[socket.send_fds(self._socket, [frame], [file]) :]
        self._outbox.append(frame)
        self.unsent += len(frame)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as much as fits."""
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

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._socket.close()
