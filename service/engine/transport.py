"""The seam, thread or process: the end that the façade holds, the end that the engine holds, and the engine's life."""

import gc
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from msmlp.model.backends.protocol import StageBackend, warm_up
from msmlp.model.errors import CallerError, MsmlpError
from msmlp.service.engine.core import EngineCore
from msmlp.service.engine.messages import Died, Inbound, Load, Outbound, Ran, Ready, Stop, Submit

log = logging.getLogger("msmlp.engine")

BackendFactory = Callable[[], StageBackend]

SHADOW_SLOTS = 32
"""Places on the device beyond `capacity`, for shadows: they never take one from a request."""

Send = Callable[[list[Outbound]], None]
"""Takes all that a batch brought and must not block. A hand-over wakes the other side, which costs more than what is
handed over. Ready and Died come last in their list."""


class Worker(Protocol):
    """Whoever owns the device, as the façade sees it. One thread calls."""

    @property
    def ready(self) -> threading.Event:
        """Set while every stage and bucket is warm and the engine lives."""

    @property
    def load(self) -> Load | None:
        """What waits, those on their way included; None while the engine is not ready."""

    def start(self) -> None:
        """Begin building and warming the backend; `ready` says when it is done."""

    def put(self, message: Inbound) -> None:
        """Hand the engine a message; never blocks."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end that `Stop` asked for, `timeout` seconds at most."""


class Port(Protocol):
    """The façade, as the engine sees it. One thread calls, the one that owns the device."""

    def take(self, *, block: bool) -> list[Inbound]:
        """What has come, in order; with `block` at least one message, once there is one."""

    def taken(self, message: Inbound) -> None:
        """The engine holds what it needs of a message: its pixels may be overwritten."""

    def send(self, messages: list[Outbound]) -> None:
        """Hand messages over."""

    def publish(self, load: Load) -> None:
        """Show what waits."""


def run(build: BackendFactory, port: Port, *, capacity: int | None, shadow_every: int) -> None:
    """The engine's life: build, warm up, run whatever comes in until `Stop` or an error; Died is its last word.

    Of `capacity` images in flight the callers keep count; what slots the backend has beyond these are for shadows, one
    of `shadow_every` confident exits. Without `capacity` it is what slots the backend has less SHADOW_SLOTS.
    """
    died, outbox = Died("stopped"), list[Outbound]()
    try:
        backend = build()
        seconds = warm_up(backend)
        reserve = _reserve(backend, capacity, shadow_every)
        flush = partial(_flush, port, outbox)

        def publish(load: Load) -> None:
            port.publish(load)
            flush()  # who gives up waiting hears of it before the batch runs

        loop = EngineCore(
            backend, outbox.append, seconds=seconds, shadow_every=shadow_every, reserve=reserve, publish=publish
        )
        port.publish(loop.load())
        port.send([Ready(backend.name, backend.device, backend.capacity - reserve)])
        log.info("ready: %s on %s, batches up to %d", backend.name, backend.device, backend.buckets[-1])
        _serve(loop, port, flush)
    except MsmlpError as error:
        # What the caller must mend, another start would not.
        died = Died(str(error), restarting=not isinstance(error, CallerError))
        log.error("engine stopped: %s", died.detail)
    except Exception:
        died = Died("engine failed", restarting=True)
        log.exception("engine stopped")
    finally:
        port.send([*outbox, died])


def _reserve(backend: StageBackend, capacity: int | None, shadow_every: int) -> int:
    if capacity is None:
        return SHADOW_SLOTS if shadow_every else 0
    return max(0, backend.capacity - capacity)


def _flush(port: Port, outbox: list[Outbound]) -> None:
    # What a batch took is nothing to wake anyone for.
    if not all(isinstance(message, Ran) for message in outbox):
        port.send(outbox.copy())
        outbox.clear()


def _serve(loop: EngineCore, port: Port, flush: Callable[[], None]) -> None:
    stopping = False
    while True:
        messages = port.take(block=loop.idle and not stopping)
        if stopping and not messages and not loop.busy:
            return
        for message in messages:
            stopping |= isinstance(message, Stop)
            loop.receive(message)
            port.taken(message)
        loop.run_once()
        flush()


class InTransit:
    """Submits on their way to the engine, until it shows a load that has them: they wait too. One thread calls."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque()
        self._images = self._gone = 0

    def put(self, message: Submit) -> None:
        """One more sets off."""
        self._images += len(message.pixels)
        self._arrivals.append(message.arrival)

    def joined(self, load: Load, submits: int, images: int) -> Load:
        """`load`, shown when so many submits and images had been taken in, and all that came after these."""
        while self._gone < submits:
            self._arrivals.popleft()
            self._gone += 1
        if not self._arrivals:
            return load
        more = self._images - images
        queued = load.queued[0] + more, *load.queued[1:]
        since = min(load.oldest[0], self._arrivals[0]), *load.oldest[1:]
        backlog = load.backlog_seconds + more * load.seconds_per_image
        return replace(load, queued=queued, oldest=since, backlog_seconds=backlog)


# FROM service/engine/transport.py:
# The engine as a thread of this process.


class ThreadWorker:
    """Runs `build()` and everything after it on a thread of its own: the device belongs to that thread.

    `send` is called on that thread. For `capacity` and `shadow_every` see `seam.run`.
    """

    def __init__(self, build: BackendFactory, send: Send, *, capacity: int | None, shadow_every: int = 0) -> None:
        self._send = send
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._underway = InTransit()
        self._submits = self._images = 0  # that the engine has taken in
        self._thread = threading.Thread(
            target=run,
            args=(build, self),
            kwargs={"capacity": capacity, "shadow_every": shadow_every},
            name="msmlp-engine",
            daemon=True,
        )
        self.ready = threading.Event()
        self._published: tuple[Load, int, int] | None = None

    def start(self) -> None:
        """Begin building and warming the backend; `ready` says when it is done."""
        self._thread.start()

    def put(self, message: Inbound) -> None:
        """Hand the engine a message; never blocks. One thread calls."""
        if isinstance(message, Submit):
            self._underway.put(message)
        self._inbox.put(message)

    @property
    def load(self) -> Load | None:
        """What waits, the inbox included; None while the engine is not ready."""
        published = self._published
        return self._underway.joined(*published) if published and self.ready.is_set() else None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    # The engine's end (seam.Port), called on its thread.

    def take(self, *, block: bool) -> list[Inbound]:
        """What has come; with `block` wait for it."""
        messages = [self._inbox.get()] if block else []
        with suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def taken(self, message: Inbound) -> None:
        """Counted, for what is published next."""
        if isinstance(message, Submit):
            self._submits += 1
            self._images += len(message.pixels)

    def send(self, messages: list[Outbound]) -> None:
        """Hand messages over. A thread's death is for good: its device is this process's."""
        last = messages[-1]
        if isinstance(last, Died):
            self.ready.clear()
            messages = [*messages[:-1], replace(last, restarting=False)]
        self._send(messages)
        if isinstance(last, Ready):
            self.ready.set()  # now that the façade hears of it before whoever waits for this

    def publish(self, load: Load) -> None:
        """For other threads: replaced, never changed."""
        self._published = load, self._submits, self._images


def freeze_gc() -> None:
    """Take everything that exists now out of garbage collection. Works once per process; later calls do nothing.

    torch brings 200,000 objects: a full collection over them stops every thread for a tenth of a second.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
