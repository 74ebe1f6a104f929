"""The engine as the web side sees it: admission by images, one awaitable a request, and what it all amounted to."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from model.exits import Reason
from service.engine.brownout import Brownout
from service.engine.messages import Answers, Cancel, Cancelled, Died, Failed, Outbound, Stop, Submit, Terms
from service.engine.result import Pending, Result
from service.engine.seam import BackendFactory, Handle
from service.engine.throughput import Throughput
from service.engine.worker import Worker
from service.errors import EngineDownError, OverloadedError, StartingError

DOWN = "the engine is down"
"""All a client is told; the log knows why."""

RESTARTING = "the engine is down and being restarted"

STOP_SECONDS = 30
"""How long an ending service waits for what is in flight; the thread is a daemon and dies with the process."""

TICK_SECONDS = 0.1
"""How often brown-out looks at the queues."""

FULL = 0.75
"""So large a share of the places taken is as much overload as the longest wait allowed."""

Observer = Callable[[Outbound], None]


class Engine:
    """Façade of one worker. Use from one event loop; `observe` is told every outbound message, on that loop.

    `brownout_seconds` is the oldest wait above which brown-out begins (0: never); of `shadow_every` images that leave
    confident one is run to the end all the same (0: none).
    """

    def __init__(
        self,
        build: BackendFactory,
        *,
        classes: int,
        stages: int,
        capacity: int,
        observe: Observer,
        brownout_seconds: float = 0,
        shadow_every: int = 0,
        worker: Callable[..., Handle] = Worker,
    ) -> None:
        self.capacity, self._classes, self._stages = capacity, classes, stages
        self.inflight = 0
        self.throughput = Throughput()
        self._observers = [observe]
        self._numbers = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: str | None = None
        self._restarting = False
        self._brownout = Brownout(brownout_seconds)
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
        self.worker.put(Stop())
        await asyncio.to_thread(self.worker.join, STOP_SECONDS)

    def check(self) -> None:
        """Raise StartingError or EngineDownError when the engine cannot take images now."""
        if self._death is not None:
            raise EngineDownError(DOWN)
        if not self.worker.ready.is_set():
            if self._restarting:
                raise EngineDownError(RESTARTING)
            raise StartingError("the service is starting: stages are being warmed up")

    @property
    def up(self) -> bool:
        """Whether it can."""
        return self._death is None and self.worker.ready.is_set()

    @property
    def down(self) -> bool:
        """Whether the worker has ended for good."""
        return self._death is not None

    @property
    def brownout_level(self) -> int:
        """The brown-out level now, 0 to `brownout.LEVELS`."""
        return self._brownout.level

    def admit(self, images: int) -> None:
        """Take `images` permits, which `release` gives back.

        Raises:
            StartingError, EngineDownError: not serving.
            OverloadedError: fewer permits are left; says when to come again.
        """
        self.check()
        if self.inflight + images > self.capacity:
            # The time the backlog takes at the recent pace.
            pace = self.throughput.per_second(time.monotonic())
            wait = math.ceil(self.inflight / pace) if pace else 1
            raise OverloadedError(
                f"{self.inflight} of {self.capacity} places are taken, {images} wanted",
                retry_after=min(60, max(1, wait)),
            )
        self.inflight += images

    def release(self, images: int) -> None:
        """Give permits back."""
        self.inflight -= images

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
        with self._submitted(pixels, terms, left) as pending:
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
        pending = self._pending[number] = Pending(
            len(pixels), self._classes, self._stages, stream=terms.stream, left=left
        )
        self.worker.put(Submit(number, pixels, terms, time.monotonic()))
        try:
            yield pending
        except (asyncio.CancelledError, GeneratorExit):
            self.worker.put(Cancel(number))
            raise
        finally:
            del self._pending[number]
            if pending.done.done() and not pending.done.cancelled():
                pending.done.exception()  # asked for, or asyncio would complain that nobody did

    def _tick(self) -> None:
        """Look at the backlog, again and again: brown-out must also end when nobody asks."""
        now, load = time.monotonic(), self.worker.load
        since = math.inf if load is None else float(load.oldest.min())
        wait = max(0.0, now - since) if math.isfinite(since) else 0.0
        # A fast engine's places are all taken before anyone has waited for long.
        full = self.inflight / (FULL * self.capacity)
        self._brownout.update(now, max(wait, full * self._brownout.high))
        if not self.down:
            asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _send(self, messages: list[Outbound]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver_all, messages)

    def _deliver_all(self, messages: list[Outbound]) -> None:
        for message in messages:
            self._deliver(message)

    def _deliver(self, message: Outbound) -> None:
        if isinstance(message, Answers):
            self._land(message)
        elif isinstance(message, Failed):
            for number in message.requests.tolist():
                self._fail(number, message.detail)
        elif isinstance(message, Died):
            self._restarting = message.restarting
            if not message.restarting:
                self._death = message.detail
            for number in list(self._pending):
                self._fail(number, DOWN)
        self._tell(message)

    def _tell(self, message: Outbound) -> None:
        for observe in self._observers:
            observe(message)

    def _land(self, answers: Answers) -> None:
        now = time.monotonic()
        self.throughput.count(int((answers.reason != Reason.GOES_ON).sum()), now)
        for number in np.unique(answers.request).tolist():
            pending, mine = self._pending.get(number), np.flatnonzero(answers.request == number)
            if pending is not None:
                pending.land(answers, mine, now)
            else:  # its caller left while they ran
                self._tell(Cancelled("batch", int((answers.reason[mine] != Reason.GOES_ON).sum())))

    def _fail(self, number: int, detail: str) -> None:
        pending = self._pending.get(number)
        if pending is not None:
            pending.fail(EngineDownError(detail))
