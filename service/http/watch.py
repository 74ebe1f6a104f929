"""What a connection may take: how many are open, and how long each of them may be silent, slow or unanswered.

One sweep over all connections, twice a second, does it. Timers for each request would cost as much as parsing it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from msmlp.service.errors import BodyTimeoutError, UnansweredError
from msmlp.service.logs import Seldom, sane_id
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RequestRecord

if TYPE_CHECKING:
    from msmlp.service.http.connection import Connection

log = logging.getLogger("msmlp.http")

RATE = 10_000
"""Bytes per second that a body, and the reading of an answer, must reach over any `--body-seconds`."""

STALL_SECONDS = 1.0
"""A body slower than RATE for this long is ended when others need its memory."""

SWEEP_SECONDS = 0.5
"""Between two sweeps; less if a limit is shorter than four of them."""

TURN = 512
"""Connections of one turn of the event loop: a sweep over many must not hold up requests."""

GRACE_SECONDS = 5.0
"""How long a request that was told to end may take to answer; then its connection is cut."""


class Phase(StrEnum):
    """What a connection waits for: the values of the label `phase`."""

    IDLE = "idle"  # the next request
    HEAD = "head"
    BODY = "body"
    REQUEST = "request"  # the application
    ANSWER = "answer"  # the client, to read


class Seen:
    """What the last sweep saw of a connection that was opened `now`, and since when (seconds of the watch's clock)."""

    def __init__(self, now: float = 0.0) -> None:
        self.turn: tuple[Any, int] = (None, 0)
        self.phase = Phase.HEAD
        self.turned = self.since = self.moving = now
        self.told, self._mark = 0.0, 0
        self.moved: deque[tuple[float, int]] = deque()

    def update(self, turn: tuple[Any, int], phase: Phase, now: float) -> None:
        # By identity: what was answered and begun between two sweeps is another request in the same phase.
        same = turn[0] is self.turn[0] and turn[1] == self.turn[1]
        if not same:
            self.turn, self.turned = turn, now
        if not same or phase is not self.phase:
            self.phase, self.since, self.moving = phase, now, now
            self.moved.clear()

    def stalled(self, moved: int, now: float) -> bool:
        """Whether less than RATE has moved for STALL_SECONDS; `moving` is until when more did."""
        if moved - self._mark >= RATE * (now - self.moving):
            self.moving, self._mark = now, moved
        return now - self.moving >= STALL_SECONDS

    def crawls(self, moved: int, now: float, seconds: float) -> bool:
        """Whether fewer than RATE bytes per second have moved over the last `seconds`; `moved` is their sum so far."""
        if not seconds:
            return False
        self.moved.append((now, moved))
        while len(self.moved) > 1 and self.moved[1][0] <= now - seconds:
            self.moved.popleft()
        begin, before = self.moved[0]
        return now - begin >= seconds and moved - before < RATE * (now - begin)


class Watch:
    """Of one process. `open` are its connections, HTTP only; there is room for `most`."""

    def __init__(self, service: Service) -> None:
        settings, self._metrics, self._records = service.settings, service.metrics, service.records
        self._seconds = {
            Phase.IDLE: settings.keep_alive_seconds,
            Phase.HEAD: settings.head_seconds,
            Phase.BODY: settings.body_seconds,
            Phase.REQUEST: settings.request_seconds,
            Phase.ANSWER: settings.body_seconds,
        }
        self.open: dict[Connection, None] = {}  # in the order in which they came
        self.leaving = False
        """Whether every answer is the last on its connection."""
        self._pause = min([SWEEP_SECONDS, *(seconds / 4 for seconds in self._seconds.values() if seconds)])
        self._clock, self._looked = 0.0, time.monotonic()
        self.most = service.connections
        # As of the last sweep, the longest last.
        self._silent: list[Connection] = []
        self._stalled: list[Connection] = []
        self.between: Callable[[Connection], None] | None = None
        """If set, called with each connection that has just come between two requests: some are to be given back."""
        self._full = Seldom(log, logging.WARNING)
        self._odd = Seldom(log, logging.INFO)
        self._metrics.connections.set_function(lambda: len(self.open))
        self._metrics.capacity_connections.set(self.most)

    # Connections.

    def opened(self, connection: "Connection") -> bool:
        """A connection has come; False if there is no room for it, not even in place of a silent one."""
        if len(self.open) >= self.most and not self._evict():
            self._count_refused()
            return False
        connection.seen = Seen(self._now())
        self.open[connection] = None
        return True

    def closed(self, connection: "Connection") -> None:
        self.open.pop(connection, None)

    def ends(self, connection: "Connection") -> bool:
        """It is cut in GRACE_SECONDS unless it ends by itself; False if there is no room for it even now."""
        if connection not in self.open:
            return False
        connection.seen.told = connection.seen.told or self._now()
        return True

    def refused(self, status: int, detail: str) -> str:
        """An incomplete or invalid request is answered with `status` → the id of the answer, counted and logged."""
        record = RequestRecord(sane_id(""), time.monotonic(), "other", "other", status=status)
        self._records.close(record)
        self._odd("refused: %s", detail, request_id=record.request_id)
        return record.request_id

    def _evict(self) -> bool:
        while self._silent:
            connection = self._silent.pop()
            same = connection.turn[0] is connection.seen.turn[0]
            if connection in self.open and same and connection.phase in (Phase.IDLE, Phase.HEAD):
                self._count_refused()
                del self.open[connection]  # or it would linger
                transport = connection.transport
                # One that lingers already has its answer, and closing it once more would do nothing.
                (transport.abort if transport.is_closing() else transport.close)()
                return True
        return False

    def make_room(self) -> bool:
        """End the unfinished body that has moved least lately, for others; False if all of them move."""
        while self._stalled:
            connection = self._stalled.pop()
            same = connection in self.open and connection.turn[0] is connection.seen.turn[0]
            if same and self._stalls(connection, self._now()):
                connection.seen.told = self._now()
                self._metrics.timeouts.labels(Phase.BODY).inc()
                connection.late(partial(BodyTimeoutError, "the body came too slowly while others needed its memory"))
                return True
        return False

    def _stalls(self, connection: "Connection", now: float) -> bool:
        seen = connection.seen
        if seen.told or connection.phase is not Phase.BODY or not connection.unanswered:
            return False
        return seen.stalled(connection.read, now) and connection.holds

    def _count_refused(self) -> None:
        self._metrics.connections_refused.inc()
        self._full("all %d connections are in use (--max-connections): one is closed", self.most)

    # The sweep.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            self._clock, self._looked = self._now(), time.monotonic()
            silent, stalled = [], []
            for number, connection in enumerate(list(self.open), 1):
                try:
                    self._look(connection, self._clock)
                except Exception:  # the others are still watched
                    log.exception("a connection could not be looked at, and is cut")
                    connection.transport.abort()
                if connection.seen.phase in (Phase.IDLE, Phase.HEAD):
                    silent.append(connection)
                elif connection.seen.phase is Phase.BODY and self._stalls(connection, self._clock):
                    stalled.append(connection)
                if number % TURN == 0:
                    await asyncio.sleep(0)
            self._stalled = sorted(stalled, key=lambda each: -each.seen.moving)
            if len(self.open) > 0.9 * self.most:
                # Among equals the first to come is the last here.
                silent.reverse()
                self._silent = sorted(silent, key=lambda each: -each.seen.since)
            else:
                self._silent = []

    def _now(self) -> float:
        """Seconds, without those for which all was frozen: nobody was slow then."""
        return self._clock + min(time.monotonic() - self._looked, 2 * self._pause)

    def _look(self, connection: "Connection", now: float) -> None:
        seen, phase = connection.seen, connection.phase
        seen.update(connection.turn, phase, now)
        if seen.told:
            if now - seen.told >= GRACE_SECONDS:
                connection.transport.abort()
            return
        limit, seconds = phase, self._seconds[phase]
        if phase in (Phase.IDLE, Phase.HEAD):
            over = bool(seconds) and now - seen.since >= seconds
        else:
            moved = connection.sent if phase is Phase.ANSWER else connection.read
            over = phase is not Phase.REQUEST and seen.crawls(moved, now, seconds)
            whole = self._seconds[Phase.REQUEST]
            if not over and whole and now - seen.turned >= whole:
                over, limit, seconds = True, Phase.REQUEST, whole
        if over:
            seen.told = now
            self._end(connection, phase, limit, seconds)

    def _end(self, connection: "Connection", phase: Phase, limit: Phase, seconds: float) -> None:
        """End what a connection waits for: it took longer than `limit` allows."""
        self._metrics.timeouts.labels(limit).inc()
        if phase is Phase.HEAD and connection.read:
            detail = f"the head of the request did not come within {seconds:g} s"
            connection.refuse(HTTPStatus.REQUEST_TIMEOUT, "head_timeout", detail)
        elif phase in (Phase.HEAD, Phase.IDLE):
            connection.transport.close()
        elif not connection.unanswered:
            connection.transport.abort()  # the client could take what it has for a whole answer
        elif phase is Phase.BODY and limit is Phase.BODY:
            detail = f"less than {RATE // 1000} KB/s of the body came for {seconds:g} s"
            connection.late(partial(BodyTimeoutError, detail))
        elif phase is Phase.BODY:
            connection.late(partial(BodyTimeoutError, f"the whole body did not come within {seconds:g} s"))
        else:
            connection.late(partial(UnansweredError, f"no answer was ready within {seconds:g} s"))
