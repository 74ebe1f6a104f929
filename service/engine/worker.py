"""The engine's thread: it builds and warms the backend, then lets the loop run whatever comes in."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from model.backends.protocol import StageBackend, warm_up
from model.errors import MsmlpError
from service.engine.loop import Loop
from service.engine.messages import Died, Inbound, Load, Outbound, Ready, Stop, Submit

log = logging.getLogger("msmlp.engine")

BackendFactory = Callable[[], StageBackend]


class Worker:
    """Runs `build()` and everything after it on a thread of its own: the device belongs to that thread.

    `send` is called on that thread with all that a batch brought and must not block: a hand-over wakes the other side,
    which costs more than what is handed over. Of `capacity` images in flight the
    callers keep count; what slots the backend has beyond these are for shadows, one of `shadow_every` confident exits.
    """

    def __init__(
        self, build: BackendFactory, send: Callable[[list[Outbound]], None], *, capacity: int, shadow_every: int = 0
    ) -> None:
        self._build, self._send = build, send
        self._capacity, self._shadow_every = capacity, shadow_every
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        # Who stands in the inbox waits too. Each thread counts its own side; only `append` and `popleft` meet.
        self._arrivals: deque[float] = deque()
        self._put_images = self._taken_images = 0
        self._thread = threading.Thread(target=self._main, name="msmlp-engine", daemon=True)
        self.ready = threading.Event()
        self._load: Load | None = None
        self._outbox: list[Outbound] = []

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
    def load(self) -> Load | None:
        """What waits, the inbox included; None while the engine is not ready."""
        load = self._load
        if load is None or not self.ready.is_set():
            return None
        queued, oldest = load.queued.copy(), load.oldest.copy()
        waiting = self._put_images - self._taken_images
        queued[0] += waiting
        with suppress(IndexError):  # taken in just now
            oldest[0] = min(oldest[0], self._arrivals[0])
        backlog = load.backlog_seconds + waiting * load.seconds_per_image
        return replace(load, queued=queued, oldest=oldest, backlog_seconds=backlog)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _main(self) -> None:
        detail = "stopped"
        try:
            backend = self._build()
            seconds = warm_up(backend)
            reserve = max(0, backend.capacity - self._capacity)
            loop = Loop(
                backend,
                self._outbox.append,
                seconds=seconds,
                shadow_every=self._shadow_every,
                reserve=reserve,
                publish=self._publish,
            )
            self._publish(loop.load())
            self.ready.set()
            log.info("ready: %s on %s, batches up to %d", backend.name, backend.device, backend.buckets[-1])
            self._outbox.append(Ready(backend.name, backend.device, backend.capacity - reserve))
            self._flush()
            self._serve(loop)
        except MsmlpError as error:
            detail = str(error)
            log.error("engine stopped: %s", detail)
        except Exception:
            detail = "engine failed"
            log.exception("engine stopped")
        finally:
            self.ready.clear()
            self._outbox.append(Died(detail))
            self._flush()

    def _serve(self, loop: "Loop") -> None:
        stopping = False
        while True:
            if stopping and not loop.busy and self._inbox.empty():
                return
            for message in self._drain(block=loop.idle):
                stopping |= isinstance(message, Stop)
                loop.receive(message)
                if isinstance(message, Submit):
                    self._taken_images += len(message.pixels)
                    self._arrivals.popleft()
            loop.run_once()
            self._flush()

    def _drain(self, *, block: bool) -> list[Inbound]:
        messages = [self._inbox.get()] if block else []
        while True:
            try:
                messages.append(self._inbox.get_nowait())
            except queue.Empty:
                return messages

    def _publish(self, load: Load) -> None:
        """For other threads: replaced, never changed. Who gives up waiting hears of it before the batch runs."""
        self._load = load
        self._flush()

    def _flush(self) -> None:
        if self._outbox:
            self._send(self._outbox.copy())
            self._outbox.clear()
