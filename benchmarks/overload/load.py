"""Requests at the times of a Poisson process, over as many connections as are waiting: lean, and honest about itself.

`open_loop.py` serves loads that a service can take. Here thousands of requests wait at once and as many are refused per
second, so a connection is a protocol without streams or tasks.
"""

import asyncio
import gc
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop

from msmlp.bench.generator import Load

SLEEP = 0.0005
"""Seconds between two looks at what is due: arrivals within one come together."""
LEAD = 0.25
"""The share of a load at its start that is not counted: the queue fills, and brown-out finds its level."""
AHEAD = 2.2
"""Seconds of requests for which connections are open beforehand: a little more than the server's longest wait."""
PATIENCE = 30.0
"""Seconds to wait for the last answers."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_INSIDE = re.compile(rb'"latency_ms":([\d.]+),"throughput')
_RETRY = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


@dataclass
class Seen:
    """What came back: seconds from when a request was due to its answer, by status; and how late requests were sent."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    retry_after: Counter[int] = field(default_factory=Counter)
    degraded: int = 0
    late: list[float] = field(default_factory=list)
    took: float = 0.0
    sent: list[float] = field(default_factory=list)
    """When each was sent, in seconds after the start."""
    inside: list[float] = field(default_factory=list)
    """Milliseconds that answers say they took in the service."""

    def count(self, status: str) -> int:
        return len(self.seconds.get(status, ()))

    def percentile_ms(self, status: str, percent: float) -> float | None:
        found = self.seconds.get(status)
        return 1e3 * float(np.percentile(found, percent)) if found else None


class _Connection(asyncio.Protocol):
    """One request at a time; free again when it was answered."""

    def __init__(self, client: "_Client") -> None:
        self._client, self._due, self._got = client, 0.0, b""
        self._asking = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, due: float) -> None:
        self._due, self._asking = due, True
        self._client.waiting += 1
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got = self._got + data if self._got else data
        ends = self._got.find(b"\r\n\r\n")
        if ends < 0:
            return
        head = self._got[: ends + 2]
        length = _LENGTH.search(head)
        if length is None or len(self._got) >= ends + 4 + int(length[1]):
            answer, self._got = self._got, b""
            self._answered(answer[9:12].decode(), head, answer)

    def _answered(self, status: str, head: bytes, answer: bytes) -> None:
        self._asking = False
        self._client.waiting -= 1
        if self._due >= self._client.since:
            self._note(self._client.seen, status, head, answer)
        if b"\r\nconnection: close" in head.lower():
            self.transport.close()
        else:
            self._client.free.append(self)

    def _note(self, seen: Seen, status: str, head: bytes, answer: bytes) -> None:
        seen.seconds.setdefault(status, []).append(time.perf_counter() - self._due)
        seen.degraded += b'"degraded":true' in answer
        if found := _INSIDE.search(answer):
            seen.inside.append(float(found[1]))
        if status == "429" and (found := _RETRY.search(head)):
            seen.retry_after[int(found[1])] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asking:
            self._asking = False
            self._answered("lost", b"\r\nconnection: close", b"")
        elif self in self._client.free:
            self._client.free.remove(self)
        self._client.open -= 1


class _Client:
    """The connections of a load."""

    def __init__(self, load: Load, seen: Seen) -> None:
        self._load, self.seen = load, seen
        # The longest idle first: the server closes those that it has not heard of for seconds.
        self.free: deque[_Connection] = deque()
        self.waiting = self.open = 0
        self.since = 0.0  # what was due before is not counted

    async def send(self, rate: float, seed: int, *, from_sending: bool) -> None:
        """`rate` requests per second for the load's seconds; at most its `connections` wait at once, more are lost.

        Times are `from_sending`, or from when a request was due.
        """
        host, port = urlsplit(self._load.url).hostname, urlsplit(self._load.url).port
        loop, requests = asyncio.get_running_loop(), self._load.requests
        rng = np.random.default_rng(seed)
        gaps = rng.exponential(1 / rate, size=int(rate * self._load.seconds * 1.2) + 100)
        offsets = np.cumsum(gaps)
        offsets = offsets[offsets < self._load.seconds]
        which = rng.integers(0, len(requests), len(offsets)).tolist()
        while self.open < min(self._load.connections, max(64, AHEAD * rate)):
            await asyncio.gather(*(self._connect(loop, host, port) for _ in range(64)))
        await asyncio.sleep(0.5)  # the server has seen them all
        start = time.perf_counter()
        self.since = start + LEAD * self._load.seconds
        now, opening = 0.0, set[asyncio.Task[None]]()
        for number, due in enumerate((start + offsets).tolist()):
            while now < due and (now := time.perf_counter()) < due:
                await asyncio.sleep(max(SLEEP, due - now))
            if number % 64 == 0:
                await asyncio.sleep(0)  # answers are read even when all is late
                now = time.perf_counter()
            self.seen.late.append(now - due)
            self.seen.sent.append(now - start)
            if from_sending:
                due = now
            if self.free:
                self.free.popleft().ask(requests[which[number]], due)
            elif self.open < self._load.connections:
                opening.add(task := asyncio.create_task(self._connect(loop, host, port)))
                task.add_done_callback(partial(self._ask, opening, requests[which[number]], due))
            else:
                self.seen.seconds.setdefault("no connection", []).append(0.0)
        self.seen.took = time.perf_counter() - self.since
        until = time.perf_counter() + PATIENCE
        while (self.waiting or opening) and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        self.seen.seconds.setdefault("unanswered", []).extend([PATIENCE] * (self.waiting + len(opening)))
        for connection in self.free:
            connection.transport.close()
        await asyncio.sleep(0.2)  # in the loop's next turns: what stays open would be in the way of the next load

    def _ask(self, opening: set[asyncio.Task[None]], request: bytes, due: float, opened: asyncio.Task[None]) -> None:
        opening.discard(opened)
        if opened.exception():
            self.seen.seconds.setdefault("no connection", []).append(time.perf_counter() - due)
        elif self.free:
            self.free.popleft().ask(request, due)

    async def _connect(self, loop: asyncio.AbstractEventLoop, host: Any, port: Any) -> None:
        self.open += 1
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), host, port)
        except OSError:
            self.open -= 1
            raise
        self.free.append(connection)


def offer(load: Load, rate: float, seed: int = 0, *, from_sending: bool = False) -> Seen:
    """Send a load and wait for its last answer."""
    seen = Seen()
    gc.disable()  # thousands of connections wait: looking through them would make requests late
    try:
        uvloop.run(_Client(load, seen).send(rate, seed, from_sending=from_sending))
    finally:
        gc.enable()
    return seen
