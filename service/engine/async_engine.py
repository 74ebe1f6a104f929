"""The engine as the web side sees it: admission by images, one awaitable a request, and what it all amounted to."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import MsmlpError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.admission import Admission
from msmlp.service.engine.brownout import LEVELS, Brownout, Totals
from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Cancelled,
    Died,
    Failed,
    Inbound,
    Load,
    Outbound,
    Ready,
    Stop,
    Submit,
    Terms,
)
from msmlp.service.engine.result import Pending, Result
from msmlp.service.engine.transport import BackendFactory, Handle, Worker
from msmlp.service.errors import EngineDownError, OverloadedError, StartingError

log = logging.getLogger("msmlp.engine")

DOWN = "the engine is down"
"""All a client is told; the log knows why."""

RESTARTING = "the engine is down and being restarted"

STOP_SECONDS = 30
"""How long an ending service waits for what is in flight; the thread is a daemon and dies with the process."""

TICK_SECONDS = 0.1
"""How often brown-out looks at what waits, at least."""

Observer = Callable[[Outbound], None]


class Engine:
    """Façade of one worker. Use from one event loop; `observe` is told every outbound message, on that loop.

    `max_wait_seconds` is the longest predicted time to an answer at which images are let in (0: any),
    `brownout_seconds` the longest wait above which brown-out begins (0: never), `costs` the expected cost of an image
    at each of its levels; of `shadow_every` images that leave confident one is run to the end all the same (0: none).
    """

    def __init__(
        self,
        build: BackendFactory,
        *,
        capacity: int | None,
        observe: Observer,
        max_wait_seconds: float = 0,
        brownout_seconds: float = 0,
        costs: Sequence[float] = (1.0,) * (LEVELS + 1),
        shadow_every: int = 0,
        worker: Callable[..., Handle] = Worker,
    ) -> None:
        self._admission = Admission(max_wait_seconds)
        self._brownout = Brownout(brownout_seconds, max_wait_seconds, costs)
        self.throughput = Throughput()
        self._observers = [observe]
        self._numbers = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._outbox: list[Inbound] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: str | None = None
        self._restarting = False
        self.worker = worker(build, self._send, capacity=capacity, shadow_every=shadow_every)

    def start(self) -> None:
        """Start the worker; call with the loop running."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()
        self._tick()

    def watch(self, observe: Observer) -> None:
        """Tell one more observer every outbound message."""
        self._observers.append(observe)

    async def stop(self) -> None:
        """Answer what is in flight, then end the worker."""
        self._put(Stop())
        await asyncio.to_thread(self.worker.join, STOP_SECONDS)

    def check(self) -> None:
        """Raise StartingError or EngineDownError when the engine cannot take images now."""
        if self._death is not None:
            raise EngineDownError(DOWN)
        if not self.up:
            if self._restarting:
                raise EngineDownError(RESTARTING)
            raise StartingError("the service is starting: stages are being warmed up")

    @property
    def up(self) -> bool:
        """Whether it can."""
        return self._death is None and self.capacity > 0

    @property
    def down(self) -> bool:
        """Whether the worker has ended for good."""
        return self._death is not None

    @property
    def capacity(self) -> int:
        """How many images may be in flight; 0 while there is no engine to say so."""
        return self._admission.capacity

    @property
    def inflight(self) -> int:
        """How many are."""
        return self._admission.inflight

    @property
    def brownout_level(self) -> int:
        """The brown-out level now, 0 to `brownout.LEVELS`."""
        return self._brownout.level

    @property
    def backlog_seconds(self) -> float:
        """Predicted seconds of device time until all that is in flight is answered."""
        load = self.worker.load
        return 0.0 if load is None else self._admission.backlog(load)

    def admit(self, images: int, *, degraded: bool = False) -> None:
        """Take `images` permits, which `release` gives back; `degraded` when brown-out chose what they will cost.

        Raises:
            StartingError, EngineDownError: not serving.
            OverloadedError: no permits are left, or the answer would take too long; says when to come again.
        """
        self.check()
        load = self.worker.load or Load.none(1)  # it may have died just now
        refusal = self._admission.refusal(images, load)
        if refusal is not None:
            raise OverloadedError(refusal.detail, refusal.retry_after, refusal.reason)
        self._admission.take(images, degraded=degraded)
        self._look(load)

    def release(self, images: int) -> None:
        """Give permits back."""
        self._admission.give_back(images)

    async def classify(self, pixels: NDArray[np.uint8], terms: Terms) -> Result:
        """Run images [n, size, size, 3] for which `admit` gave permits; cancelling the awaiting task frees them.

        Raises:
            EngineDownError: the device failed under this request.
        """
        with self._submitted(pixels, terms) as pending:
            return await pending.done

    async def stream(
        self, pixels: NDArray[np.uint8], terms: Terms, left: Callable[[int], None] = lambda images: None
    ) -> AsyncGenerator[Result, None]:
        """The same, but every exit of every image as it lands; `terms.stream` must be set.

        `left` is told at once how many images have left, however slowly what is yielded is taken.

        Raises:
            EngineDownError: the device failed under this request; what had landed was yielded before.
        """

        def gone(images: int) -> None:
            self._admission.leave(images)
            left(images)

        with self._submitted(pixels, terms, gone) as pending:
            assert pending.landings is not None
            while (landed := await pending.landings.get()) is not None:
                yield landed
            await pending.done

    @contextmanager
    def _submitted(
        self, pixels: NDArray[np.uint8], terms: Terms, left: Callable[[int], None] = lambda images: None
    ) -> Iterator[Pending]:
        """A request in the engine; whoever leaves before its end cancels it."""
        self.check()
        number = next(self._numbers)
        pending = self._pending[number] = Pending(len(pixels), stream=terms.stream, left=left)
        try:
            self._put(Submit(number, pixels, terms, time.monotonic()))
            yield pending
        except (asyncio.CancelledError, GeneratorExit):
            self._put(Cancel(number))
            raise
        finally:
            del self._pending[number]
            # A stream has told of the others already; without one they leave with their permits.
            self._admission.leave(pending.missing if terms.stream else len(pixels))
            if pending.done.done() and not pending.done.cancelled():
                pending.done.exception()  # asked for, or asyncio would complain that nobody did

    def _put(self, message: Inbound) -> None:
        """Hand the engine a message, together with all others of this turn of the loop: woken by the first it would
        begin with a batch of one, and be woken again by each of the others.
        """
        self._outbox.append(message)
        if len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        for message in messages:
            if isinstance(message, Submit):
                self._admission.enter(len(message.pixels))
            try:
                self.worker.put(message)
            except Exception as error:  # whatever it is, the messages behind it are others'
                if not isinstance(error, MsmlpError):
                    log.exception("a message could not be handed to the engine")
                    error = EngineDownError(DOWN)
                if isinstance(message, Submit) and message.request in self._pending:
                    self._pending[message.request].fail(error)

    def _tick(self) -> None:
        """Look at what waits, again and again: brown-out must also end when nobody asks."""
        load = self.worker.load
        if load is not None:
            self._look(load)
        if not self.down:
            asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _look(self, load: Load) -> None:
        now, admission = time.monotonic(), self._admission
        wait = max(now - min(load.oldest), admission.backlog(load))
        totals = Totals(load.work_seconds, admission.let_in, admission.degraded)
        self._brownout.update(now, wait, totals, admission.share)

    def _send(self, messages: list[Outbound]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the event loop is closed, and nobody is left to hear of it
            self._loop.call_soon_threadsafe(self._deliver_all, messages)

    def _deliver_all(self, messages: list[Outbound]) -> None:
        for message in messages:
            self._deliver(message)

    def _deliver(self, message: Outbound) -> None:
        if isinstance(message, Answers):
            self._land(message)
        elif isinstance(message, Ready):
            self._admission.capacity = message.capacity
        elif isinstance(message, Failed):
            for number in message.requests.tolist():
                self._fail(number, message.detail)
        elif isinstance(message, Died):
            self._restarting, self._admission.capacity = message.restarting, 0
            if not message.restarting:
                self._death = message.detail
            for number in list(self._pending):
                self._fail(number, DOWN)
        self._tell(message)

    def _tell(self, message: Outbound) -> None:
        for observe in self._observers:
            observe(message)

    def _land(self, answers: Answers) -> None:
        """Hand everybody what is theirs: sorted once by request, so that each takes neighbouring rows."""
        now = time.monotonic()
        requests = answers.request
        if (requests[0] != requests).any():
            order = np.argsort(requests, kind="stable")
            answers, requests = answers.take(order), requests[order]
        starts = [0, *(np.flatnonzero(np.diff(requests)) + 1).tolist(), len(requests)]
        answered = 0
        for start, stop in pairwise(starts):
            landed = Result.of(answers, slice(start, stop), now)
            pending = self._pending.get(int(requests[start]))
            left = int(np.count_nonzero(landed.reason != Reason.GOES_ON))
            if pending is not None:
                answered += left
                pending.land(landed)
            else:  # its caller left while they ran
                self._tell(Cancelled("batch", left))
        self.throughput.count(answered, now)

    def _fail(self, number: int, detail: str) -> None:
        pending = self._pending.get(number)
        if pending is not None:
            pending.fail(EngineDownError(detail))


# FROM service/engine/async_engine.py:
# The service's pace, for answers, metrics and Retry-After.


class Throughput:
    """Images answered a second, over the last `window` seconds."""

    def __init__(self, window: float = 10.0) -> None:
        self.window = window
        self._landed: deque[tuple[float, int]] = deque()
        self._sum = 0

    def count(self, images: int, now: float) -> None:
        """`images` were answered."""
        self._landed.append((now, images))
        self._sum += images
        self._forget(now)

    def per_second(self, now: float) -> float:
        """The rate; in the first seconds, over the time there was."""
        self._forget(now)
        if not self._landed:
            return 0.0
        return self._sum / min(self.window, max(1.0, now - self._landed[0][0]))

    def _forget(self, now: float) -> None:
        while self._landed and self._landed[0][0] < now - self.window:
            self._sum -= self._landed.popleft()[1]
