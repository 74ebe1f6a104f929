"""Between AsyncEngine and the engine core: the interface, and the core as a thread of this process."""

import gc
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from msmlp.service.engine.core import BackendFactory, run
from msmlp.service.engine.messages import Counts, Died, Inbound, Load, Outbound, Ready, Submit

Send = Callable[[list[Outbound]], None]
"""Takes everything that a batch produced, and must not block. Handing over wakes the other side, which costs more than
the messages themselves. Ready and Died come last in their list."""


class Worker(Protocol):
    """The owner of the device, as AsyncEngine sees it. One thread calls."""

    @property
    def share(self) -> Callable[[Counts], None] | None:
        """Shows the engine's other front ends what this one has in flight; None where there can be no others."""

    @property
    def ready(self) -> threading.Event:
        """Set while the engine lives and every stage and bucket is warm."""

    @property
    def load(self) -> Load | None:
        """What waits, submits in transit included; None while the engine is not ready."""

    def start(self) -> None:
        """Begin to build and warm the backend."""

    def put(self, message: Inbound) -> None:
        """Send the engine a message; never blocks."""

    def join(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for the end that `Stop` asked for."""


class InTransit:
    """Submits on their way to the core, until a published load includes them: they wait too. One thread calls."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque()
        self._images = self._received = 0

    def put(self, message: Submit) -> None:
        self._images += len(message.pixels)
        self._arrivals.append(message.arrival)

    def added_to(self, load: Load) -> Load:
        """The published `load`, with all submits sent since."""
        while self._received < load.submits:
            self._arrivals.popleft()
            self._received += 1
        if not self._arrivals:
            return load
        more = self._images - load.images
        queued = load.queued[0] + more, *load.queued[1:]
        since = min(load.oldest[0], self._arrivals[0]), *load.oldest[1:]
        backlog = load.backlog_seconds + more * load.seconds_per_image
        return replace(load, queued=queued, oldest=since, backlog_seconds=backlog)


class ThreadWorker:
    """Builds and runs the backend on a thread of its own: the device belongs to that thread.

    `send` is called on that thread. See `core.run` for `permits` and `shadow_every`.
    """

    share = None

    def __init__(self, build: BackendFactory, send: Send, *, permits: int | None, shadow_every: int = 0) -> None:
        self._send = send
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._in_transit = InTransit()
        self._published: Load | None = None
        self.ready = threading.Event()
        self._thread = threading.Thread(
            target=run,
            args=(build, self),
            kwargs={"permits": permits, "shadow_every": shadow_every},
            name="msmlp-engine",
            daemon=True,
        )

    def start(self) -> None:
        self._thread.start()

    def put(self, message: Inbound) -> None:
        if isinstance(message, Submit):
            self._in_transit.put(message)
        self._inbox.put(message)

    @property
    def load(self) -> Load | None:
        published = self._published
        return self._in_transit.added_to(published) if published and self.ready.is_set() else None

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    # The core's end (core.Port), called on the engine's thread.

    def take(self, *, block: bool) -> list[Inbound]:
        messages = [self._inbox.get()] if block else []
        with suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def send(self, messages: list[Outbound]) -> None:
        """Send messages. A thread cannot restart: its device belongs to this process."""
        last = messages[-1]
        if isinstance(last, Died):
            self.ready.clear()
            messages = [*messages[:-1], replace(last, restarting=False)]
        self._send(messages)
        if isinstance(last, Ready):
            self.ready.set()  # after AsyncEngine got the message: others wait for this event

    def publish(self, load: Load) -> None:
        self._published = load


def freeze_gc() -> None:
    """Exempt everything that exists now from garbage collection. Works once per process; later calls do nothing.

    torch brings 200,000 objects: a full collection over them stops every thread for a tenth of a second.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
