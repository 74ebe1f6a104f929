"""Logging of all the service's processes: to stderr, as text or JSON, with the request's id. It never holds them up."""

import io
import logging
import os
import random
import re
import select
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NAMES = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id_of_this_task: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task answers, if any."""


@dataclass(frozen=True)
class Logging:
    """The lowest level that is logged, and the format."""

    level: str
    format: Literal["text", "json"] = "text"

    def begin(self) -> None:
        """Log like this from now on: msmlp and uvicorn from `level`, libraries from warnings."""
        global _begun
        _begun = self
        _never_wait()
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_TextFormatter(TEXT) if self.format == "text" else _json())
        handler.addFilter(_name_request)
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        for name in ("msmlp", "uvicorn"):
            logging.getLogger(name).setLevel(self.level.upper())
        # Of odd pictures: their senders choose how many, and Python remembers each text for ever.
        warnings.filterwarnings("ignore", module=r"PIL\.")


class _NeverWaits(io.RawIOBase):
    """Writes to a descriptor whose reader may be slow, stopped or gone, and whose disk may be full: what it does not
    take at once is dropped, and counted."""

    dropped = 0

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""
        self._send = _sender(descriptor)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        """Never raises and never waits; a line of up to 4 KiB goes out as a whole, or not at all."""
        size, lines = len(data), bytes(data)
        try:
            while self._rest:  # of a longer line that went out in part
                self._rest = self._rest[self._send(self._rest) :]
            self._rest = lines[self._send(lines) :]
        except OSError:  # it would block, the reader is gone, or the disk is full
            _NeverWaits.dropped += 1
        return size


def _sender(descriptor: int) -> Callable[[bytes], int]:
    """Writes what can be written at once; OSError when nothing can."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return partial(os.write, descriptor)
    if stat.S_ISSOCK(kind):  # as systemd's journal has it
        return partial(_send_now, socket.socket(fileno=os.dup(descriptor)))
    try:
        # Opened again: the flag would otherwise hold for every process that shares it, such as the shell.
        return partial(os.write, os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError:
        return partial(_write_if_ready, descriptor)


def _send_now(connection: socket.socket, data: bytes) -> int:
    return connection.send(data, socket.MSG_DONTWAIT)


def _write_if_ready(descriptor: int, data: bytes) -> int:
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError
    return os.write(descriptor, data)


def _never_wait() -> None:
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:  # and not what a test has put there
        raw = _NeverWaits(sys.stderr.fileno())
        sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, "backslashreplace", write_through=True)


def dropped_lines() -> int:
    """How many writes to the log were dropped."""
    return _NeverWaits.dropped


_begun: Logging | None = None


def in_force() -> Logging | None:
    """How this process logs, for the processes it starts; None before `begin`."""
    return _begun


class _TextFormatter(logging.Formatter):
    """Appends the request's id in brackets, if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line, request_id = super().formatMessage(record), getattr(record, "request_id", "")
        return f"{line} [{request_id}]" if request_id else line


def _json() -> logging.Formatter:
    # `timestamp=True` is RFC 3339 in UTC. What a record has as `extra` becomes members of the object.
    unwanted = [*RESERVED_ATTRS, "color_message"]  # uvicorn repeats its message here, for terminals
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s", rename_fields=NAMES, reserved_attrs=unwanted, timestamp=True
    )


def _name_request(record: logging.LogRecord) -> bool:
    request_id = request_id_of_this_task.get()
    if request_id and not hasattr(record, "request_id"):
        record.request_id = request_id
    return True


def sane_id(given: str) -> str:
    """The client's id if it is 1 to 64 letters, digits, dots, underscores and hyphens, else a new one."""
    # Not uuid4: its system call releases the interpreter lock, and then waits to get it back.
    return given if _SANE.fullmatch(given) else f"{random.getrandbits(128):032x}"


class Seldom:
    """Logs a line that a client can provoke at most every SECONDS, then with the number of those left out."""

    SECONDS = 10.0

    def __init__(self, log: logging.Logger, level: int) -> None:
        self._log, self._level, self._next, self._left_out = log, level, 0.0, 0

    def __call__(self, text: str, *args: object, **extra: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        if self._left_out:
            text, args = text + " (and %d more like it since the last line)", (*args, self._left_out)
        self._log.log(self._level, text, *args, extra=extra)
        self._next, self._left_out = now + self.SECONDS, 0
