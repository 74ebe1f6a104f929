"""HTTP/1.1 requests in a closed loop, from a client lean enough that the server is measured.

Requests are bytes prepared beforehand, connections are kept, an answer is read by its Content-Length, and only a few
answers are kept, to be parsed afterwards.
"""

import asyncio
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

KEPT = 200
"""Answers kept at most, one in EVERY, unless a Seen says otherwise."""
EVERY = 9
"""Odd, so that all of 64 images sent in turn are seen."""
PATIENCE_SECONDS = 60
PAUSE_SECONDS = 0.02
"""Before a connection is tried again."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """Whole requests, sent in turn over `connections` for `seconds`."""

    url: str
    requests: tuple[bytes, ...]
    connections: int
    seconds: float


@dataclass
class Seen:
    """What came back: `latencies` in seconds of the requests answered 200.

    `asked` says which request each of the kept `answers` belongs to: one in `every`, at most `most`. `seconds` is how
    long it all took, `cpu` the CPU time of this process.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    answers: list[bytes] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    every: int = EVERY
    most: int = KEPT

    def percentiles_ms(self) -> NDArray[np.float64]:
        """p50, p95 and p99."""
        return 1e3 * np.percentile(self.latencies, (50, 95, 99))

    def note(self, request: int, status: str, body: bytes, latency: float) -> None:
        self.statuses[status] += 1
        if status == "200":
            if len(self.latencies) % self.every == 0 and len(self.answers) < self.most:
                self.answers.append(body)
                self.asked.append(request)
            self.latencies.append(latency)


def request_bytes(url: str, path: str, content: bytes, content_type: str, **headers: str) -> bytes:
    parts = urlsplit(url)
    lines = (
        f"POST {parts.path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    )
    return "\r\n".join((*lines, "", "")).encode() + content


async def closed_loop(load: Load, seen: Seen) -> None:
    """Each connection sends the next request as soon as it was answered."""
    until, turn = time.perf_counter() + load.seconds, count()

    async def send_on() -> None:
        with closing(Connection(load, seen)) as connection:
            while (now := time.perf_counter()) < until:
                await connection.ask(next(turn), now)

    await asyncio.gather(*(send_on() for _ in range(load.connections)))


def offer(
    load: Load, seen: Seen | None = None, loop: Callable[[Load, Seen], Coroutine[None, None, None]] = closed_loop
) -> Seen:
    """Send a load and wait for the last answer; a subclass of Seen may record more."""
    seen, start, cpu = seen or Seen(), time.perf_counter(), time.process_time()
    asyncio.run(loop(load, seen))
    seen.seconds, seen.cpu = time.perf_counter() - start, time.process_time() - cpu
    return seen


class Connection:
    """A kept connection, opened again when the server has closed it."""

    def __init__(self, load: Load, seen: Seen) -> None:
        self._parts, self._requests, self._seen = urlsplit(load.url), load.requests, seen
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, number: int, since: float) -> None:
        """Send one of the requests, in turn, and record its answer; an exception counts under its name."""
        request = number % len(self._requests)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                status, body = await self._exchange(self._requests[request])
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            self._seen.statuses[type(error).__name__] += 1
            self.close()
            await asyncio.sleep(PAUSE_SECONDS)
            return
        self._seen.note(request, status, body, time.perf_counter() - since)

    async def _exchange(self, request: bytes) -> tuple[str, bytes]:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # it was idle for longer than the server keeps one
        if self._streams is None:
            tls = ssl.create_default_context() if self._parts.scheme == "https" else None
            port = self._parts.port or (443 if tls else 80)
            self._streams = await asyncio.open_connection(self._parts.hostname, port, ssl=tls)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None:
            raise ValueError("an answer without Content-Length")
        body = await reader.readexactly(int(length[1]))
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return head[9:12].decode("ascii"), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
