"""The engine's thread: it builds and warms the backend, then lets the loop run whatever comes in."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from model.backends.protocol import StageBackend, warm_up
from model.errors import MsmlpError
from service.engine.loop import Loop
from service.engine.messages import Died, Inbound, Outbound, Ready, Stop, Submit
from service.engine.scheduler import Scheduler

log = logging.getLogger("msmlp.engine")

BackendFactory = Callable[[], StageBackend]


class Worker:
    """Runs `build()` and everything after it on a thread of its own: the device belongs to that thread.

    `send` is called on that thread with every outbound message and must not block. Of `capacity` images in flight the
    callers keep count; what slots the backend has beyond these are for shadows, one of `shadow_every` confident exits.
    """

    def __init__(
        self, build: BackendFactory, send: Callable[[Outbound], None], *, capacity: int, shadow_every: int = 0
    ) -> None:
        self._build, self._send = build, send
        self._capacity, self._shadow_every = capacity, shadow_every
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        # Who stands in the inbox waits too. Each thread counts its own side; only `append` and `popleft` meet.
        self._arrivals: deque[float] = deque()
        self._put_images = self._taken_images = 0
        self._thread = threading.Thread(target=self._main, name="msmlp-engine", daemon=True)
        self.ready = threading.Event()
        self._queued = np.zeros(0, dtype=np.int64)
        self._oldest = np.zeros(0)

    def start(self) -> None:
        """Begin building and warming the backend; `ready` says when it is done."""
        self._thread.start()

    def put(self, message: Inbound) -> None:
        """Hand the engine a message; never blocks. One thread calls."""
        if isinstance(message, Submit):
            self._put_images += len(message.pixels)
            self._arrivals.append(message.arrival)
        self._inbox.put(message)

    @property
    def queued(self) -> NDArray[np.int64]:
        """Images that wait for each stage, [K]; those aboard a batch do not. Empty before the engine is ready."""
        queued = self._queued.copy()
        if len(queued) and self.ready.is_set():
            queued[0] += self._put_images - self._taken_images
        return queued

    @property
    def oldest(self) -> NDArray[np.float64]:
        """Since when the longest-waiting image of each stage waits, monotonic seconds, [K]; inf where none does."""
        oldest = self._oldest.copy()
        if len(oldest) and self.ready.is_set():
            with suppress(IndexError):  # taken in just now
                oldest[0] = min(oldest[0], self._arrivals[0])
        return oldest

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _main(self) -> None:
        detail = "stopped"
        try:
            backend = self._build()
            seconds = warm_up(backend)
            reserve = backend.capacity - self._capacity
            loop = Loop(
                backend,
                self._send,
                seconds=seconds,
                shadow_every=self._shadow_every,
                reserve=max(0, reserve),
                publish=self._publish,
            )
            self._publish(loop.scheduler)
            self.ready.set()
            log.info("ready: %s on %s, batches up to %d", backend.name, backend.device, backend.buckets[-1])
            self._send(Ready(backend.name, backend.device))
            self._serve(loop)
        except MsmlpError as error:
            detail = str(error)
            log.error("engine stopped: %s", detail)
        except Exception:
            detail = "engine failed"
            log.exception("engine stopped")
        finally:
            self.ready.clear()
            # Nobody waits for the dead.
            self._queued, self._oldest = np.zeros_like(self._queued), np.full_like(self._oldest, np.inf)
            self._send(Died(detail))

    def _serve(self, loop: "Loop") -> None:
        stopping = False
        while True:
            if stopping and not loop.scheduler.waiting().any() and self._inbox.empty():
                return
            for message in self._drain(block=loop.scheduler.idle()):
                stopping |= isinstance(message, Stop)
                loop.receive(message)
                if isinstance(message, Submit):
                    self._taken_images += len(message.pixels)
                    self._arrivals.popleft()
            loop.run_once()

    def _drain(self, *, block: bool) -> list[Inbound]:
        messages = [self._inbox.get()] if block else []
        while True:
            try:
                messages.append(self._inbox.get_nowait())
            except queue.Empty:
                return messages

    def _publish(self, scheduler: Scheduler) -> None:
        """For the gauges: arrays are replaced, never changed, so other threads may read them."""
        self._queued, self._oldest = scheduler.waiting(), scheduler.oldest_since()
