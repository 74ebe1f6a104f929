"""The engine as the web side sees it: admission by images, one awaitable a request, and what it all amounted to."""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.messages import Answers, Cancel, Died, Failed, History, Outbound, Stop, Submit
from service.engine.worker import BackendFactory, Worker
from service.errors import EngineDownError, OverloadedError, StartingError

DOWN = "the engine is down"
"""All a client is told; the log knows why."""

STOP_SECONDS = 30
"""How long an ending service waits for what is in flight; the thread is a daemon and dies with the process."""

Observer = Callable[[Outbound], None]


@dataclass
class Result:
    """A request's answers in the order of its images; `landed` is when each came, monotonic seconds."""

    exit: NDArray[np.int64]
    reason: NDArray[np.int8]
    probabilities: NDArray[np.float32]
    history: History
    landed: NDArray[np.float64]


@dataclass
class _Pending:
    future: "asyncio.Future[Result]"
    result: Result
    missing: int


class Engine:
    """Façade of one worker. Use from one event loop; `observe` is told every outbound message, on that loop."""

    def __init__(self, build: BackendFactory, *, classes: int, stages: int, capacity: int, observe: Observer) -> None:
        self.capacity, self._classes, self._stages = capacity, classes, stages
        self.inflight = 0
        self.throughput = Throughput()
        self._observers = [observe]
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: str | None = None
        self.worker = Worker(build, self._send)

    def start(self) -> None:
        """Start the worker; call with the loop running."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()

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
            raise StartingError("the service is starting: stages are being warmed up")

    @property
    def up(self) -> bool:
        """Whether it can."""
        return self._death is None and self.worker.ready.is_set()

    @property
    def down(self) -> bool:
        """Whether the worker has ended for good."""
        return self._death is not None

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

    async def classify(
        self,
        pixels: NDArray[np.uint8],
        thresholds: NDArray[np.float64],
        *,
        min_exit: int,
        max_exit: int,
    ) -> Result:
        """Run images [n, size, size, 3] for which `admit` gave permits; cancelling the awaiting task frees them.

        Raises:
            EngineDownError: the device failed under this request.
        """
        if self._death is not None:
            raise EngineDownError(DOWN)
        images, number = len(pixels), next(self._numbers)
        pending = _Pending(
            asyncio.get_running_loop().create_future(),
            Result(
                np.zeros(images, dtype=np.int64),
                np.zeros(images, dtype=np.int8),
                np.zeros((images, self._classes), dtype=np.float32),
                History.empty(images, self._stages),
                np.zeros(images),
            ),
            images,
        )
        self._pending[number] = pending
        self.worker.put(Submit(number, pixels, thresholds, min_exit, max_exit, time.monotonic()))
        try:
            return await pending.future
        except asyncio.CancelledError:
            self.worker.put(Cancel(number))
            raise
        finally:
            self._pending.pop(number, None)

    def _send(self, message: Outbound) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, message)

    def _deliver(self, message: Outbound) -> None:
        if isinstance(message, Answers):
            self._land(message)
        elif isinstance(message, Failed):
            for number in message.requests.tolist():
                self._fail(number, message.detail)
        elif isinstance(message, Died):
            self._death = message.detail
            for number in list(self._pending):
                self._fail(number, DOWN)
        for observe in self._observers:
            observe(message)

    def _land(self, answers: Answers) -> None:
        now = time.monotonic()
        self.throughput.count(len(answers.request), now)
        for number in np.unique(answers.request).tolist():
            pending = self._pending.get(number)
            if pending is None:
                continue  # its caller has left
            mine = np.flatnonzero(answers.request == number)
            rows, result = answers.index[mine], pending.result
            result.exit[rows] = answers.exit[mine]
            result.reason[rows] = answers.reason[mine]
            result.probabilities[rows] = answers.probabilities[mine]
            result.history.put(rows, answers.history.take(mine))
            result.landed[rows] = now
            pending.missing -= len(mine)
            if pending.missing == 0 and not pending.future.done():
                pending.future.set_result(result)

    def _fail(self, number: int, detail: str) -> None:
        pending = self._pending.get(number)
        if pending is not None and not pending.future.done():
            pending.future.set_exception(EngineDownError(detail))


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
