"""The seam, thread or process: the end that the façade holds, the end that the engine holds, and the engine's life."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from msmlp.model.backends.protocol import StageBackend, warm_up
from msmlp.model.errors import CallerError, MsmlpError
from msmlp.service.engine.loop import Loop
from msmlp.service.engine.messages import Died, Inbound, Load, Outbound, Ran, Ready, Stop, Submit

log = logging.getLogger("msmlp.engine")

BackendFactory = Callable[[], StageBackend]

SHADOW_SLOTS = 32
"""Places on the device beyond `capacity`, for shadows: they never take one from a request."""

Send = Callable[[list[Outbound]], None]
"""Takes all that a batch brought and must not block. A hand-over wakes the other side, which costs more than what is
handed over. Ready and Died come last in their list."""


class Handle(Protocol):
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

        loop = Loop(
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


def _serve(loop: Loop, port: Port, flush: Callable[[], None]) -> None:
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


class Underway:
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
