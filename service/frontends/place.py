"""One of the supervisor's places for a front end: the process in it, and what is known of that."""

import math
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

from msmlp.service.engine.process.host import REAP_SECONDS, Backoff
from msmlp.service.engine.process.memory import Sent
from msmlp.service.frontends.board import Board, Column
from msmlp.service.frontends.line import Failed, Kept, Line
from msmlp.service.keys import Keys
from msmlp.service.logs import Logging
from msmlp.service.settings import Settings

LOOK_SECONDS = 0.1
SILENT_LOOKS, ALONE_LOOKS = 20, 200
"""Looks in a row without a heartbeat after which a front end hangs: one of several, and one that is alone. They are
counted, not timed: if all were frozen (a paused container), so was the supervisor."""
STARTING_LOOKS = 3000
"""The same for one that was not ready yet: starting and warming up may take minutes without a heartbeat."""

ATTEMPTS = 3
"""A front end that fails this many times in a row without becoming ready is not started again."""

SETTLED_SECONDS = 3.0
"""A front end gets others' connections only once it has been ready for this long: it may die as the last one did."""

WHERE = signal.SIGUSR1
"""At this a front end says where all its threads are."""


@dataclass(frozen=True)
class Start:
    """What a front end is started with. `build(settings)` makes its service; `logs` is the supervisor's logging; `keys`
    says who may call, and if it is None, the settings do.
    """

    index: int
    settings: Settings
    build: Callable[[Settings], Any]
    board: Board
    logs: Logging | None
    version: str = ""
    """The weights that its generation serves; those of another version are refused."""
    serves: bool = True
    """Whether it may listen for gRPC at once, or waits to be asked to `serve`."""
    keys: Keys | None = None


class Place:
    """Place `start.index` of a generation; `target(start, socket)` is the life of a front end. No other living place
    has its `number`.
    """

    def __init__(self, start: Start, target: Callable[[Start, socket.socket], None], number: int = 0) -> None:
        self.number = number
        self.index, self._start, self._target, self._board = start.index, start, target, start.board
        self.process: BaseProcess | None = None
        self.line: Line | None = None
        self.failure: Failed | None = None
        self.status = 0
        """What the last process ended with."""
        self.gone = False
        """Whether it failed too often."""
        self._backoff, self._failures = Backoff(), 0
        self._dispatched = self._looks = 0
        self._beat, self._ready_since = 0.0, math.inf

    def start(self, *, serves: bool = True) -> None:
        """Start a process; it is heard through `line`, which is to be opened. OSError if there can be none now."""
        self._board.clear(self.index)
        self._dispatched = self._looks = 0
        self._beat, self._ready_since, self.failure = 0.0, math.inf, None
        ours, theirs = socket.socketpair()
        start = Sent(replace(self._start, serves=serves))
        # Not a daemon: those may have no children, and an engine can be one.
        process = get_context("spawn").Process(
            target=self._target,
            args=(start, theirs),
            name=f"msmlp-front-end-{self.index}",
            daemon=False,
        )
        with theirs, closing(start):
            try:
                process.start()
            except OSError:
                ours.close()
                raise
        self.process, self.line = process, Line(ours)

    @property
    def running(self) -> bool:
        """Whether its event loop runs."""
        return self.line is not None and self._board.get(self.index, Column.BEAT) > 0

    @property
    def takes_connections(self) -> bool:
        return self.running and not self._board.get(self.index, Column.LEAVING)

    @property
    def was_ready(self) -> bool:
        return math.isfinite(self._ready_since)

    @property
    def settled(self) -> bool:
        """Whether it has been ready for SETTLED_SECONDS."""
        return time.monotonic() - self._ready_since >= SETTLED_SECONDS

    @property
    def ready(self) -> bool:
        return self.line is not None and self._board.get(self.index, Column.READY) > 0

    @property
    def connections(self) -> int:
        return self._dispatched - int(self._board.get(self.index, Column.LEFT))

    def hand_over(self, connection: socket.socket) -> bool:
        taken = self.line is not None and self.line.hand_over(connection, kept=isinstance(connection, Kept))
        self._dispatched += taken
        return taken

    def hangs(self) -> bool:
        """Look once more → whether it has been silent too long."""
        if self.ready and not self.was_ready:
            self._ready_since, self._looks = time.monotonic(), 0  # what it took to start is no silence
        beat = self._board.get(self.index, Column.BEAT)
        self._looks = self._looks + 1 if beat == self._beat else 0
        self._beat = beat
        patience = SILENT_LOOKS if self._board.rows > 1 else ALONE_LOOKS
        if self._looks < (patience if self.was_ready else STARTING_LOOKS):
            return False
        self._looks = 0
        return True

    def say_where(self) -> None:
        """Let the process log where its threads are."""
        if self.process is not None and self.process.pid is not None and self.was_ready:
            os.kill(self.process.pid, WHERE)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def bury(self) -> str:
        """The process has ended, or is killed now → how it ended."""
        assert self.process is not None
        assert self.line is not None
        self.line.close()
        self.process.join(REAP_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(REAP_SECONDS)
        status = self.status = self.process.exitcode or 0
        self.process = self.line = None
        self._board.clear(self.index)
        if self.failure is not None:
            return self.failure.detail
        return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"

    def next_start(self) -> float | None:
        """Seconds until a process is to be started after one that died; None: not again."""
        self._failures = 0 if self.was_ready else self._failures + 1
        self.gone = self._failures == ATTEMPTS
        return None if self.gone else self._backoff.after(time.monotonic() - self._ready_since)
