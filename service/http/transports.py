"""What connections write to: a response's head goes with its body, and over TLS no more than the client takes."""

import asyncio
import fcntl
import sys
import termios
from collections import deque
from collections.abc import Callable
from typing import Any

PIECE = 2**16
"""Bytes that are handed to TLS at a time."""

FAREWELL_SECONDS = 0.5
"""How often to check whether a client has received everything; it may never close its side."""


def unsent(transport: Any) -> int:
    """Bytes that our system still holds for the client: megabytes, and it takes more only once a third of them went."""
    try:
        socket = transport.get_extra_info("socket")
        return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (AttributeError, OSError):  # the connection is lost, or the system does not say
        return 0


class Joining:
    """A transport that sends the head of a response together with its body: two packets would wake the client twice."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self.written = 0
        self.linger: Callable[[], bool] = bool
        """How to close while the client still sends; False if there is no way."""
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self.flush)  # for a body that comes later
            return
        self._write(data)

    def close(self) -> None:
        self.flush()
        self._lingers = self._lingers or self.linger()
        if not self._lingers:
            self._end()

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def go_on(self) -> bool:
        """The client takes more. → Whether it has taken all that waited."""
        return True

    def write_eof(self) -> None:
        """Half-close: the answer has been sent, and anything written later is dropped."""
        self.flush()
        self._lingers = True
        self._transport.write_eof()

    def _end(self) -> None:
        self._transport.close()

    def flush(self) -> None:
        """Send a head whose response may have no body."""
        if self._head:
            head, self._head = self._head, b""
            self._write(head)

    def _write(self, data: bytes) -> None:
        if not self.is_closing():  # uvloop would raise
            self.written += len(data)
            self._transport.write(data)


class Paced(Joining):
    """The same over TLS, whose transport takes any number of bytes and does not say how many of them wait below it.

    They wait here instead, where `Watch` sees them, but for a piece or two. Its limit must be 1 byte, so that it
    says at once when the client takes no more.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport, loop)
        self._waiting: deque[memoryview] = deque()
        self._ending = False

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._waiting)) + self._transport.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self._ending or self._transport.is_closing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Say goodbye once all is written. What the client still sends is dropped, until it says goodbye too."""
        self.flush()
        self._ending = True
        self.go_on()

    def _end(self) -> None:
        if not self._ending:
            self.write_eof()
            self._loop.call_later(FAREWELL_SECONDS, self._leave)

    def go_on(self) -> bool:
        if self._transport.is_closing():
            self._waiting.clear()
            return False
        while self._waiting and not self._transport.get_write_buffer_size():
            self._transport.write(self._waiting.popleft())
        if self._ending and not self._waiting:
            self._transport.close()
        return not self.get_write_buffer_size()

    def _write(self, data: bytes) -> None:
        if self.is_closing():
            return
        self.written += len(data)
        view = memoryview(data)
        self._waiting.extend(view[begin : begin + PIECE] for begin in range(0, len(data), PIECE))
        self.go_on()

    def _leave(self, had_all: bool = False) -> None:
        """End a closed connection without the client's goodbye, which may never come, once it has all."""
        has_all = not (self._waiting or unsent(self._transport))
        if has_all and had_all:  # twice, as what waits below TLS is handed on in between
            self._transport.abort()
        elif self._transport.get_extra_info("socket") is not None:
            self._loop.call_later(FAREWELL_SECONDS, self._leave, has_all)
