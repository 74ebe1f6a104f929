"""The decoder threads, and what a request's images go through on them: headers, limits, then its pictures by turns."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, Lock

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import ImageError, MsmlpError
from msmlp.model.plain import plain_image
from msmlp.model.views import Target, Views, views_of
from msmlp.service.decoding.cost import PER_PICTURE, DecodeTimes
from msmlp.service.decoding.pictures import Picture, Pixels, Source, read_header
from msmlp.service.decoding.queue import DecodeQueue, Next
from msmlp.service.errors import BadImagesError, TooManyPixelsError
from msmlp.service.memory import free_frames

START_SECONDS = 10.0
"""How long threads wait for each other at the start, if the system gives fewer than asked for."""

SMALL_BYTES, SMALL_WORK = 2**14, 128 * 160
"""A single image up to this size, and this much work (a progressive JPEG of 128 x 128 pixels), is decoded on the event
loop: a thread, and the wait for the interpreter, would take longer than the decoding."""

LOOP_SECONDS = 0.005
"""But none that is predicted to take longer."""

HEADERS = 16
"""Headers that are read in one turn."""
WORTH_A_THREAD = 0.002
"""Predicted seconds of work for which one more thread begins: threads get into each other's way."""

Sources = Sequence[Source] | NDArray[np.uint8]
"""Separate images, or the pixels of all in one array [n, H, W, 3]."""
Check = Callable[[float, float], None]
"""Refuses a request by the predicted seconds until its decoding ends; the second number is how many of them are its own
work."""
Count = Callable[[int], object]
"""Is told the pixels (width x height) of all pictures of a request before they are decoded."""


def no_count(_pixels: int) -> None:
    """Nobody wants to know."""


def _unscaled(shape: tuple[int, ...], views: Views) -> int | None:
    """The size of pixels that are what the stages read; None if they must be scaled."""
    return views.plain if shape == (views.plain, views.plain, 3) else None


class Decoders:
    """Decodes the images of all requests on `threads` threads. Use it from one event loop.

    `max_pixels` bounds the pixels to be decoded of an image, `max_request_pixels` those of a request. `observe` gets,
    on the event loop, the kinds and seconds of pictures that threads have decoded.
    """

    def __init__(
        self,
        threads: int,
        *,
        max_pixels: int,
        max_request_pixels: int,
        observe: Callable[[list[tuple[str, float]]], None] = lambda _: None,
    ) -> None:
        self._number, self._max_pixels, self._max_request_pixels = threads, max_pixels, max_request_pixels
        self._small_pixels = min(max_pixels, max_request_pixels)
        self._observe = observe
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="msmlp-decode")
        self._times = DecodeTimes()
        self._lock = Lock()  # for all below
        self._queue: DecodeQueue[_Job] = DecodeQueue()
        self._working, self._in_work = 0, 0.0

    def start(self) -> None:
        """Start all threads now: when one is needed, the system may have none to give, and its turns would not come."""
        all_there = Barrier(self._number)
        for _ in range(self._number):
            self.threads.submit(all_there.wait, START_SECONDS)

    def backlog(self) -> float:
        """Predicted seconds until all that waits or is being decoded is decoded."""
        with self._lock:
            return (self._queue.seconds + self._in_work) / self._number

    def busy(self) -> float:
        """The share of the threads that are at work."""
        with self._lock:
            return self._working / self._number

    def shutdown(self) -> None:
        self.threads.shutdown()

    def at_once(self, sources: Sources, target: Target, count: Count = no_count) -> Pixels | None:
        """What needs no thread: pixels that are not scaled, or a single small image; None for all others.

        BadImagesError for a single image that cannot be decoded.
        """
        views = views_of(target)
        if isinstance(sources, np.ndarray) and (size := _unscaled(sources.shape[1:], views)):
            count(len(sources) * size * size)
            return sources
        if len(sources) == 1 and (small := self._small(sources[0], views, count)) is not None:
            return small[None]
        return None

    async def decode(
        self,
        sources: Sources,
        target: Target,
        *,
        deadline: float = math.inf,
        check: Check = lambda *_: None,
        count: Count = no_count,
    ) -> Pixels:
        """Decode and resize images → uint8 [n, *the target's shape].

        Cancelled, it stops after the pictures that are being decoded. When the deadline passes (monotonic seconds) it
        stops too, and what is left is black: the engine computes nothing that late.

        Raises:
            BadImagesError: one entry per image that cannot be decoded.
            TooManyPixelsError: more pixels to decode than a request may have.
            MsmlpError: what `check` raises.
        """
        job = _Job(sources, views_of(target), deadline, check, count)
        starts = range(0, len(sources), HEADERS)
        self._enter(job, [PER_PICTURE * min(HEADERS, len(sources) - start) for start in starts])
        job.watch_deadline()  # its turn may come later, and a picture may take long
        try:
            await job.done
        finally:
            if job.overdue is not None:
                job.overdue.cancel()
            with self._lock:
                self._forget(job)
            self._observe(job.took)
        return job.pixels

    def _small(self, source: Source, views: Views, count: Count) -> Pixels | None:
        """The pixels of a small image; None for a large one."""
        if isinstance(source, np.ndarray):
            if not (size := _unscaled(source.shape, views)):
                return None
            count(size * size)
            return source
        if len(source) > SMALL_BYTES:
            return None
        if (size := views.plain) and (plain := plain_image(source, size, max_pixels=self._small_pixels)):
            count(size * size)
            return views.pixels(plain)
        try:
            picture = read_header(source, views, self._max_pixels)
            small = picture.work <= SMALL_WORK and picture.pixels <= self._small_pixels
            if small and self._times.predict(picture.kind, picture.work) <= LOOP_SECONDS:
                count(picture.full)
                return picture.decode()
            return None
        except ImageError as error:
            raise BadImagesError([(0, error)]) from None

    def _enter(self, job: "_Job", seconds: Sequence[float]) -> None:
        """Let a job's turns wait, and as many threads work as all work is worth."""
        with self._lock:
            if job.ended:
                return
            job.left = len(seconds)
            self._queue.add(job, seconds)
            worth = min(self._number, 1 + int((self._queue.seconds + self._in_work) / WORTH_A_THREAD))
            begin, self._working = worth - self._working, max(worth, self._working)
        for _ in range(begin):
            self.threads.submit(self._work)

    def _forget(self, job: "_Job") -> None:
        """No more turns; with the lock held."""
        job.ended = True
        self._queue.remove(job)

    def _work(self) -> None:
        """On a thread: turns, until there are no more."""
        while (turn := self._begin_turn()) is not None:
            try:
                self._take(turn.request, turn.number, time.monotonic())
            except Exception as error:  # any: the turns behind it belong to other requests
                self._end(turn.request, error)
            with self._lock:
                self._in_work -= turn.seconds

    def _begin_turn(self) -> "Next[_Job] | None":
        with self._lock:
            turn = self._queue.take()
            if turn is None:
                self._working -= 1
                if not self._working:
                    self._in_work = 0.0  # without what rounding leaves
            else:
                self._in_work += turn.seconds
            return turn

    def _take(self, job: "_Job", index: int, began: float) -> None:
        """One turn of a job: a few headers, or a picture."""
        if began >= job.deadline:
            self._end(job)
        elif job.order:
            self._decode(job, index, began)
        else:
            job.read(index, self._max_pixels)
            if self._was_last(job):
                self._plan(job)

    def _was_last(self, job: "_Job") -> bool:
        with self._lock:
            job.left -= 1
            return not job.left

    def _plan(self, job: "_Job") -> None:
        """All headers are known: refuse the request, or let its pictures wait for their turns."""
        job.order = sorted(job.pictures)
        pictures = [job.pictures[index] for index in job.order]
        if not pictures:
            raise job.error()
        pixels = sum(picture.pixels for picture in pictures)
        if pixels > self._max_request_pixels:
            raise TooManyPixelsError(
                f"the images have {pixels} pixels to decode, the limit of a request is {self._max_request_pixels} "
                "(--max-request-pixels)"
            )
        with self._lock:
            seconds = [self._times.predict(picture.kind, picture.work) for picture in pictures]
            total = sum(seconds)
            before = self._queue.ahead(total) + self._in_work
        job.check(max(*seconds, (before + total) / self._number), total / self._number)
        job.count(sum(picture.full for picture in pictures))
        self._enter(job, seconds)

    def _decode(self, job: "_Job", number: int, began: float) -> None:
        index = job.order[number]
        picture = job.pictures.pop(index)  # opened files hold memory
        try:
            job.pixels[index] = picture.decode()
        except ImageError as error:
            free_frames(error)
            job.errors.append((index, error))
        seconds = time.monotonic() - began
        job.took.append((picture.kind, seconds))
        with self._lock:
            self._times.learn(picture.kind, picture.work, seconds)
        if self._was_last(job):
            self._end(job, job.error() if job.errors else None)

    def _end(self, job: "_Job", error: Exception | None = None) -> None:
        with self._lock:
            self._forget(job)
        with suppress(RuntimeError):  # the event loop is closed
            job.loop.call_soon_threadsafe(job.settle, error)


class _Job:
    """A request on the decoder threads. Its turns are `HEADERS` headers each until it has an `order`, then pictures."""

    def __init__(self, sources: Sources, views: Views, deadline: float, check: Check, count: Count) -> None:
        self.sources, self.views, self.deadline, self.check, self.count = sources, views, deadline, check, count
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.pictures: dict[int, Picture] = {}
        self.order: list[int] = []  # of pictures that can be decoded
        self.pixels = np.zeros((len(sources), *views.shape), np.uint8)
        self.errors: list[tuple[int, MsmlpError]] = []
        self.took: list[tuple[str, float]] = []
        self.left = 0
        self.ended = False
        self.overdue: asyncio.TimerHandle | None = None

    def watch_deadline(self) -> None:
        """Settle once the deadline has passed, not before: the engine would classify what is black. uvloop counts in
        whole milliseconds, and calls up to two of them early."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.settle(None)
        elif self.deadline < math.inf:
            self.overdue = self.loop.call_later(max(left, 0.001), self.watch_deadline)

    def read(self, turn: int, max_pixels: int) -> None:
        """Read the headers of a turn."""
        for index in range(HEADERS * turn, min(HEADERS * (turn + 1), len(self.sources))):
            try:
                self.pictures[index] = read_header(self.sources[index], self.views, max_pixels)
            except ImageError as error:
                free_frames(error)
                self.errors.append((index, error))

    def error(self) -> BadImagesError:
        return BadImagesError(sorted(self.errors, key=lambda each: each[0]))

    def settle(self, error: Exception | None) -> None:
        """On the event loop."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
