"""The engine as the web side sees it: admission by images, and one awaitable per request."""

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from time import process_time, thread_time

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import MsmlpError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.admission import Permits
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.heartbeat import LOOK_SECONDS
from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Cancelled,
    Died,
    ExitParameters,
    Failed,
    Inbound,
    Load,
    Outbound,
    Ready,
    Stop,
    Submit,
)
from msmlp.service.engine.overload import FROZEN_SECONDS, Overload
from msmlp.service.engine.result import Pending, Result
from msmlp.service.engine.transport import ThreadWorker, Worker
from msmlp.service.errors import EngineDownError, OverloadedError, StartingError

log = logging.getLogger("msmlp.engine")

DOWN = "the engine is down"
"""All that a client learns; the log has the cause."""

STOP_SECONDS = 30
"""How long a stopping service waits for the images in flight; the engine's thread is a daemon and ends with it."""

LATE = 0.1
"""A request whose deadline has passed is given up after this share of the silence that is called a hang. A batch that
takes as long as predicted does not."""

GRACE_SECONDS = 0.1
"""How long after its deadline."""

IDLE = 0.1
"""A process that spent less than this share of a pause was stopped for it."""

WINDOW_SECONDS = 10.0
"""Seconds over which throughput is measured."""


class AsyncEngine:
    """Admission, brown-out and the worker of a service. Use it from one event loop.

    `permits` is how many images may be in flight (None: as many as the device has slots), `max_wait_seconds` the
    longest predicted time to an answer at which images are admitted (0: no limit), `brownout_seconds` the wait above
    which brown-out begins (0: never), `costs` the expected cost per image at each of its levels. One of `shadow_every`
    confident images still runs to the last exit (0: none).
    """

    def __init__(
        self,
        build: BackendFactory,
        *,
        permits: int | None = None,
        max_wait_seconds: float = 0,
        brownout_seconds: float = 0,
        costs: Sequence[float] = (1.0,) * (LEVELS + 1),
        shadow_every: int = 0,
        worker: Callable[..., Worker] = ThreadWorker,
    ) -> None:
        self.overload = Overload(max_wait_seconds, brownout_seconds, costs)
        self.admission, self.brownout = self.overload.admission, self.overload.brownout
        self.throughput = Throughput()
        self._observers: list[Callable[[Outbound], None]] = []
        self._numbers = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._outbox: list[Inbound] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._died: Died | None = None
        self._give_up_after = math.inf
        self.heartbeat_age = 0.0
        """Seconds since the engine's last sign of life."""
        self.turns = 0
        """Signs of life of the event loop, every LOOK_SECONDS."""
        self.late = self._spent = 0.0
        """By how many seconds the newest came too late."""
        self.decode_backlog: Callable[[], float] = float
        """Predicted seconds until all that was admitted is decoded; brown-out counts them as waiting."""
        self.decode_busy: Callable[[], float] = float
        """The share of decoder threads that are at work."""
        self.worker = worker(build, self._send, permits=permits, shadow_every=shadow_every)
        self.admission.share_with = self.worker.share

    def watch(self, observe: Callable[[Outbound], None]) -> None:
        """Call `observe` with every message of the engine, on the event loop."""
        self._observers.append(observe)

    def start(self) -> None:
        """Start the worker; call with the loop running."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.worker.start()
        self._tick(time.monotonic())

    async def stop(self) -> None:
        """Answer the images in flight, then end the worker."""
        self._put(Stop())
        await asyncio.to_thread(self.worker.join, STOP_SECONDS)

    def check(self) -> None:
        """Raise StartingError or EngineDownError when the engine cannot take images now."""
        if self.up:
            return
        if self._died is None:
            raise StartingError("the service is starting: stages are being warmed up")
        raise EngineDownError(f"{DOWN} and being restarted" if self._died.restarting else DOWN)

    def level_now(self) -> int:
        """The brown-out level of a request that comes now."""
        return self.overload.level(self.worker.load)

    @property
    def up(self) -> bool:
        return self.admission.permits > 0

    @property
    def down(self) -> bool:
        """Whether the worker has ended for good."""
        return self._died is not None and not self._died.restarting

    def admit(self, images: int, *, degraded: bool = False) -> Permits:
        """Permits to classify `images` images; `degraded` if brown-out chose the operating point.

        Raises:
            StartingError, EngineDownError: not serving.
            OverloadedError: no permits are left, or the answer would take too long; says when to retry.
        """
        self.check()
        load = self.worker.load or Load.none(1)  # the worker may have died just now
        return self.overload.admit(images, load, time.monotonic(), self.decode_backlog, degraded=degraded)

    def decoding_check(self, images: int) -> Callable[[float, float], None]:
        """Refuses admitted images by what their decoding takes (Admission.check_decoding), on any thread."""
        return partial(self.admission.check_decoding, images, self.worker.load or Load.none(1))

    async def classify(self, pixels: NDArray[np.uint8], parameters: ExitParameters, permits: Permits) -> Result:
        """Run admitted images [n, size, size, 3]; cancelling the awaiting task cancels them.

        Raises:
            EngineDownError: the device failed under this request.
            OverloadedError: other front ends took the last slots first.
        """
        with _Submitted(self, pixels, parameters, permits) as pending:
            return await pending.done

    async def stream(
        self, pixels: NDArray[np.uint8], parameters: ExitParameters, permits: Permits
    ) -> AsyncGenerator[Result, None]:
        """Like `classify`, but yield every exit of every image as it is reached; `parameters.stream` must be set.

        Raises:
            EngineDownError: the device failed under this request; earlier results were yielded.
        """
        with _Submitted(self, pixels, parameters, permits) as pending:
            assert pending.landings is not None
            while (landed := await pending.landings.get()) is not None:
                yield landed
            await pending.done

    def enter(self, pixels: NDArray[np.uint8], parameters: ExitParameters, permits: Permits) -> tuple[int, Pending]:
        """Submit a request → its number, and its answers to come. `leave` must follow."""
        self.check()
        number = next(self._numbers)
        pending = self._pending[number] = Pending(len(pixels), permits, parameters)
        self._put(Submit(number, pixels, parameters, time.monotonic()))
        return number, pending

    def leave(self, number: int, permits: Permits, *, cancelled: bool) -> None:
        """Forget a request; a cancelled one leaves the engine too."""
        if cancelled:
            self._put(Cancel(number))
        pending = self._pending.pop(number)
        permits.leave(pending.missing)
        if pending.done.done() and not pending.done.cancelled():
            pending.done.exception()  # retrieved, or asyncio would complain

    def _put(self, message: Inbound) -> None:
        """Send a message at the end of this turn of the event loop, together with all others of the turn.

        The first one alone would wake the engine for a batch of one, and each of the others would wake it again.
        """
        self._outbox.append(message)
        if len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        for message in messages:
            if isinstance(message, Submit):
                self.admission.inside += len(message.pixels)
            try:
                self.worker.put(message)
            except Exception as error:  # any: the messages behind it belong to other requests
                if not isinstance(error, MsmlpError):
                    log.exception("a message could not be sent to the engine")
                    error = EngineDownError(DOWN)
                if isinstance(message, Submit):
                    self._fail(message.request, error)

    def _tick(self, due: float) -> None:
        """Look after the engine, see how late the loop is, and update brown-out: it must also end without requests."""
        now = time.monotonic()
        asyncio.get_running_loop().call_later(LOOK_SECONDS, self._tick, now + LOOK_SECONDS)
        self.turns += 1
        self.late, before, self._spent = now - due, self._spent, process_time()
        # What held the loop up spent CPU time of this process; while that is stopped, it spends none.
        frozen = self.late > FROZEN_SECONDS and self._spent - before < IDLE * self.late
        self.admission.look(now, thread_time(), 0.0 if frozen else self.late)
        self.admission.decoding.look(now, self.decode_busy())
        self.heartbeat_age = self.worker.look(now)
        if self.heartbeat_age > self._give_up_after:
            self._give_up(now - GRACE_SECONDS)
        self.overload.look(self.worker.load, now, self.decode_backlog)

    def _give_up(self, deadline: float) -> None:
        """The engine is silent: images whose deadline was before `deadline` expire here."""
        for number, pending in list(self._pending.items()):
            if pending.deadline < deadline and pending.missing:
                pending.expire()
                self._put(Cancel(number))

    def _send(self, messages: list[Outbound]) -> None:
        """Hand messages to the event loop, from the worker's thread or its own."""
        assert self._loop is not None
        if threading.get_ident() == self._thread:
            self._receive(messages)
            return
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._receive, messages)

    def _receive(self, messages: list[Outbound]) -> None:
        for message in messages:
            if isinstance(message, Answers):
                self._land(message)
            elif isinstance(message, Ready):
                self._died, self.admission.permits = None, message.permits
                self._give_up_after = LATE * message.silence
            elif isinstance(message, Failed):
                for number in message.requests.tolist():
                    self._fail(number, _error_of(message))
            elif isinstance(message, Died):
                self._died, self.admission.permits = message, 0
                for number in list(self._pending):
                    self._fail(number, EngineDownError(DOWN))
            self._notify(message)

    def _notify(self, message: Outbound) -> None:
        for observe in self._observers:
            observe(message)

    def _land(self, answers: Answers) -> None:
        """Split answers by request. They are sorted once, so that each request takes neighbouring rows."""
        now = time.monotonic()
        requests, result = answers.request, Result.of(answers, now)
        numbers = requests.tolist()
        starts = [*range(len(numbers) + 1)]
        if len({*numbers}) < len(numbers):
            order = np.argsort(requests, kind="stable")
            requests, result = requests[order], result.take(order)
            starts = [0, *(np.flatnonzero(np.diff(requests)) + 1).tolist(), len(requests)]
            numbers = requests.tolist()
        answered = 0
        for start, stop in pairwise(starts):
            part = result if stop - start == len(numbers) else result.part(slice(start, stop))
            pending = self._pending.get(numbers[start])
            if pending is not None:
                try:
                    answered += pending.land(part)
                except Exception as error:  # any: the requests behind it must not wait for ever
                    log.exception("answers could not be joined")
                    pending.fail(error)
            else:  # the client left while they ran
                self._notify(Cancelled("batch", int(np.count_nonzero(part.reason != Reason.GOES_ON))))
        self.throughput.count(answered, now)

    def _fail(self, number: int, error: Exception) -> None:
        pending = self._pending.get(number)
        if pending is not None:
            pending.fail(error)


def _error_of(failed: Failed) -> MsmlpError:
    """What the caller of a failed request learns."""
    return OverloadedError(failed.detail, reason="capacity") if failed.shed else EngineDownError(failed.detail)


class _Submitted:
    """A request in the engine, cancelled if the block is left early. A generator would take three times as long."""

    def __init__(
        self, engine: AsyncEngine, pixels: NDArray[np.uint8], parameters: ExitParameters, permits: Permits
    ) -> None:
        self._engine, self._permits = engine, permits
        self._number, self._pending = engine.enter(pixels, parameters, permits)

    def __enter__(self) -> Pending:
        return self._pending

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit)
        self._engine.leave(self._number, self._permits, cancelled=cancelled)


class Throughput:
    """Images answered per second, over the last WINDOW_SECONDS."""

    def __init__(self) -> None:
        self._answered: deque[tuple[float, int]] = deque()
        self._sum = 0

    def count(self, images: int, now: float) -> None:
        self._answered.append((now, images))
        self._sum += images
        self._forget(now)

    def per_second(self, now: float) -> float:
        """The rate; in the first seconds, over the time since the first answer."""
        self._forget(now)
        if not self._answered:
            return 0.0
        return self._sum / min(WINDOW_SECONDS, max(1.0, now - self._answered[0][0]))

    def _forget(self, now: float) -> None:
        while self._answered and self._answered[0][0] < now - WINDOW_SECONDS:
            self._sum -= self._answered.popleft()[1]
