"""Between AsyncEngine and the engine core: the interface, and the core in this process, inline or as a thread."""

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from msmlp.service.engine.core import BackendFactory, Engine, Warm, run, warmed
from msmlp.service.engine.heartbeat import BEAT_SECONDS, Heartbeat
from msmlp.service.engine.messages import Counts, Died, Inbound, Load, Outbound, Ready, Stop, Submit

log = logging.getLogger("msmlp.engine")

Send = Callable[[list[Outbound]], None]
"""Takes everything that a batch produced, and must not block. Handing over wakes the other side, which costs more than
the messages themselves. Ready and Died come last in their list."""

MOST_SECONDS = 0.05
"""The longest batch that may run on the event loop's thread: probes and deadlines wait for it."""

MOST_PASSES = 3
"""How many passes of the event loop an idle engine waits while each brings more images. Clients whose images left
together send the next ones together, but the loop reads and decodes these in several passes."""

TURN_SECONDS = 0.003
"""How long batches follow each other before the loop does something else. Images that came together then mostly leave
together, and the next requests of their clients come together too: batches stay large."""


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

    def look(self, now: float) -> float:
        """Look at the engine's heartbeat; call it every `heartbeat.LOOK_SECONDS` → seconds since its last sign of life.

        An engine that hangs has died then: Died is sent, and what is inside has failed.
        """

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
        rest = load.seconds_per_image, load.work_seconds, load.prediction_margin, load.submits, load.images
        return Load(queued, since, backlog, *rest, load.others)  # `replace` takes several times as long


class LocalWorker:
    """What the workers of this process share. `send` is called on the core's thread. See `core.Engine` for the rest."""

    share = None

    def __init__(self, build: BackendFactory, send: Send, *, permits: int | None, shadow_every: int = 0) -> None:
        self._build, self._permits, self._shadow_every = build, permits, shadow_every
        self._send = send
        self._in_transit = InTransit()
        self._published: Load | None = None
        self.ready = threading.Event()

    def look(self, now: float) -> float:
        """An engine on the thread that looks lives as long as that does."""
        return 0.0

    @property
    def load(self) -> Load | None:
        published = self._published
        return self._in_transit.added_to(published) if published and self.ready.is_set() else None

    # The core's end (core.Port), called on its thread.

    def send(self, messages: list[Outbound]) -> None:
        """Send messages. The engine cannot restart: its device belongs to this process."""
        last = messages[-1]
        if isinstance(last, Died):
            self.ready.clear()
            messages = [*messages[:-1], replace(last, restarting=False)]
        self._send(messages)
        if isinstance(last, Ready):
            self.ready.set()  # after AsyncEngine got the message: others wait for this event

    def publish(self, load: Load) -> None:
        self._published = load


class ThreadWorker(LocalWorker):
    """Builds and runs the backend on a thread of its own: the device belongs to that thread."""

    def __init__(self, build: BackendFactory, send: Send, *, permits: int | None, shadow_every: int = 0) -> None:
        super().__init__(build, send, permits=permits, shadow_every=shadow_every)
        self._heartbeat, self._beat, self._silence = Heartbeat(), 0, math.inf
        self._hangs = False
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
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

    def look(self, now: float) -> float:
        """A thread that hangs cannot be ended: the process is to end."""
        age = self._heartbeat.look(self._beat, now)
        if age > self._silence and self.ready.is_set():
            self._hangs = True
            self.ready.clear()
            died = Died(f"the engine's thread has not responded for {age:.1f} s")
            log.error("%s", died.detail)
            self._send([died])
        return age

    def join(self, timeout: float | None = None) -> None:
        if not self._hangs:
            self._thread.join(timeout)

    # The core's end.

    def send(self, messages: list[Outbound]) -> None:
        if isinstance(messages[-1], Ready):
            self._silence = messages[-1].silence
        if not self._hangs:  # nobody waits for it any more
            super().send(messages)

    def publish(self, load: Load) -> None:
        self._beat += 1
        super().publish(load)

    def take(self, *, block: bool) -> list[Inbound]:
        messages = list[Inbound]()
        while block and not messages:
            self._beat += 1
            with suppress(queue.Empty):
                messages.append(self._inbox.get(timeout=BEAT_SECONDS))
        self._beat += 1
        with suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages


class InlineWorker(LocalWorker):
    """Runs the backend on the event loop's own thread, a few batches at a time between the loop's other work.

    Handing over to a thread costs more than a small network's batch takes on a CPU. The loop cannot do anything else
    while a batch runs, so buckets whose batch takes longer than `MOST_SECONDS` are not used.
    """

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: list[Inbound] = []
        self._due = self._stopping = False
        self._seen = self._passes = 0
        self._ended = threading.Event()
        self._engine = Engine(self, permits=self._permits, shadow_every=self._shadow_every, publishes=False)
        self._loop.run_in_executor(None, warmed, self._build, MOST_SECONDS).add_done_callback(self._begin)

    @property
    def load(self) -> Load | None:
        if self._published is None and self.ready.is_set():
            self._published = self._engine.core.load()
        return super().load

    def _begin(self, built: asyncio.Future[Warm]) -> None:
        try:
            self._engine.begin(*built.result())
        except Exception as error:
            self._end(error)
        else:
            self._wake()

    def _end(self, error: Exception | None = None) -> None:
        self._engine.end(error)
        self._ended.set()

    def put(self, message: Inbound) -> None:
        if isinstance(message, Submit):
            self._in_transit.put(message)
        self._inbox.append(message)
        if self.ready.is_set():
            self._wake()

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Take in what has come, and run batches for a moment."""
        if self._ended.is_set():
            return
        if len(self._inbox) > self._seen and self._passes < MOST_PASSES and self._engine.core.idle:
            self._seen = len(self._inbox)
            self._passes += 1
            self._loop.call_soon(self._turn)
            return
        self._due, self._seen, self._passes = False, 0, 0
        messages, self._inbox = self._inbox, []
        self._stopping |= any(isinstance(message, Stop) for message in messages)
        self._published, until = None, time.monotonic() + TURN_SECONDS
        try:
            self._engine.turn(messages)
            while not self._engine.core.idle and time.monotonic() < until:
                self._engine.turn([])
        except Exception as error:
            self._end(error)
            return
        core = self._engine.core
        if self._stopping and not core.busy:
            self._end()
        elif not core.idle:
            self._wake()

    def join(self, timeout: float | None = None) -> None:
        """Wait on another thread than the loop's."""
        self._ended.wait(timeout)
