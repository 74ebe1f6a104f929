"""The thread that reads large requests one at a time: which is next, and which are refused. `ParseQueue` is pure."""

import asyncio
import math
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from msmlp.service.engine.door import Bookings
from msmlp.service.errors import OverloadedError

T = TypeVar("T")
Job = TypeVar("Job")

START = 3e-9
"""Seconds per byte of any kind of work, from decompressing zeros and reading JSON on one core of an AMD EPYC."""
LEAST = START / 3
"""What is refused at its first bytes takes no time; it must not make the rest look free."""
MEMORY = 30e6
"""Bytes after which a third of what was learned before still counts."""
OUTLIER = 10.0
"""Work is not believed to have taken longer than this many times its prediction: its thread was held up."""
PATIENCE = 10.0
"""Work lets smaller work pass that comes within this many times its own seconds, and no later: it does not starve."""
LOOK_SECONDS = 1.0
"""The shortest time over which the bookings learn what others take."""


class _Waiting(NamedTuple, Generic[Job]):
    turn: float  # the lowest is next
    number: int
    job: Job
    kind: str
    size: int
    seconds: float


class ParseQueue(Generic[Job]):
    """Work that waits for the thread, by when it came and the seconds predicted from its kind and bytes.

    `max_wait` is the longest predicted wait at which work is let in, in seconds (0: no limit).
    """

    def __init__(self, max_wait: float) -> None:
        self._max_wait, self._bookings = max_wait, Bookings(max_wait)
        self._per_byte: defaultdict[str, float] = defaultdict(lambda: START)
        self._waiting: list[_Waiting[Job]] = []
        self._number = 0
        self._taken: _Waiting[Job] | None = None
        self._began, self._looked = 0.0, -math.inf
        self._spent = 0.0  # seconds of work since the bookings learned last

    def add(self, job: Job, kind: str, size: int, now: float) -> None:
        """Let work on `size` bytes wait; OverloadedError if too much goes before it. Behind nothing, any may."""
        seconds = self._per_byte[kind] * size
        self._number += 1
        entry = _Waiting(now + PATIENCE * seconds, self._number, job, kind, size, seconds)
        wait = sum(each.seconds for each in self._waiting if each.turn <= entry.turn)
        if self._taken is not None:
            wait += max(0.0, self._began + self._taken.seconds - now)
        if 0 < self._max_wait < wait:
            raise self._refusal(wait, seconds, now)
        insort(self._waiting, entry)

    def take(self, now: float) -> Job | None:
        """The next work, which begins; None if there is none."""
        if not self._waiting:
            return None
        self._taken, self._began = self._waiting.pop(0), now
        return self._taken.job

    def end(self, now: float, *, learn: bool = True) -> None:
        """What was taken has ended; `learn` from the time that it took."""
        entry, self._taken = self._taken, None
        if entry is None or not learn:
            return
        took = min(now - self._began, OUTLIER * entry.seconds)
        self._spent += took
        learned = (self._per_byte[entry.kind] * MEMORY + took) / (MEMORY + entry.size)
        self._per_byte[entry.kind] = max(LEAST, learned)

    def remove(self, job: Job) -> None:
        """Forget work if it still waits."""
        self._waiting = [each for each in self._waiting if each.job is not job]

    def _refusal(self, wait: float, seconds: float, now: float) -> OverloadedError:
        if now - self._looked >= LOOK_SECONDS:
            self._bookings.look(now, self._spent / (now - self._looked))
            self._looked, self._spent = now, 0.0
        detail = f"large requests are read one at a time: the predicted wait is {1e3 * wait:.0f} ms"
        retry = self._bookings.book(now, wait - self._max_wait, seconds)
        return OverloadedError(f"{detail}, the limit {1e3 * self._max_wait:.0f} ms", retry, "wait")


class Parser:
    """Reads large requests on one thread: several would hold each other up, and the event loop.

    `shed` is called when one is refused.
    """

    def __init__(self, max_wait: float, shed: Callable[[], None] = lambda: None) -> None:
        self._shed, self._lock = shed, Lock()
        self._queue: ParseQueue[tuple[Future[Any], Callable[[], Any]]] = ParseQueue(max_wait)
        self.thread = ThreadPoolExecutor(1, "msmlp-parse")

    def start(self) -> None:
        """Start the thread now, as those of the decoders."""
        self.thread.submit(int)

    async def run(self, kind: str, size: int, work: Callable[[], T]) -> T:
        """The result of work on `size` bytes; it is not begun once the caller has left.

        Raises:
            OverloadedError: it would wait too long; what `work` raises.
        """
        future: Future[T] = Future()
        job = (future, work)
        try:
            with self._lock:
                self._queue.add(job, kind, size, time.monotonic())
        except OverloadedError:
            self._shed()
            raise
        self.thread.submit(self._turn)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            with self._lock:
                self._queue.remove(job)
            raise
        finally:
            del future, job, work  # an error has this frame, which would have the error

    def _turn(self) -> None:
        """On the thread."""
        with self._lock:
            job = self._queue.take(time.monotonic())
        if job is None:  # whose turn it was has left
            return
        future, work = job
        wanted = future.set_running_or_notify_cancel()
        error = result = None
        try:
            result = work() if wanted else None
        except BaseException as raised:  # any: it is the caller's
            error = raised
        with self._lock:
            self._queue.end(time.monotonic(), learn=wanted)
        if error is not None:
            future.set_exception(error)
        elif wanted:
            future.set_result(result)
        del job, future, error  # as in `run`
