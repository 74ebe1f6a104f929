"""The engine as a process, from the parent's side: a thread starts the child, reads its messages, and restarts it."""

import atexit
import logging
import math
import select
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context, resource_tracker
from typing import Any

from msmlp.model.errors import DeviceError
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.messages import Died, Inbound, Load, Outbound, Ready, Stop, Submit
from msmlp.service.engine.process.child import HANG_SECONDS, ChildSpec, main
from msmlp.service.engine.process.wire import SharedMemory, SharedSubmit, pack, unpack
from msmlp.service.engine.transport import InTransit, Send
from msmlp.service.logs import in_force

log = logging.getLogger("msmlp.engine")

FRAME = 8
"""Messages per frame: it stays well under PIPE_BUF, so that a pipe with room takes it without blocking."""


class ChildProcess:
    """One child. One thread calls `put` and `load`, another `receive` and `close`."""

    def __init__(self, spec: ChildSpec) -> None:
        context = get_context("spawn")
        self._memory = SharedMemory(ring_images=spec.ring_images, size=spec.size, stages=spec.stages)
        inbound, self._to = context.Pipe(duplex=False)
        self._from, outbound = context.Pipe(duplex=False)
        self.process = context.Process(
            target=main,
            args=(spec, self._memory, inbound, outbound, in_force()),
            name="msmlp-engine",
            daemon=True,
        )
        self.process.start()
        # Only the child holds these ends now, so `receive` notices when it ends.
        inbound.close()
        outbound.close()
        self._poll = select.poll()
        self._poll.register(self._to.fileno(), select.POLLOUT)
        self._lock = threading.Lock()
        self._outbox: deque[Inbound] = deque()
        self._next, self._free = 0, spec.ring_images  # position in the ring, and room
        self._in_ring: deque[int] = deque()  # images of each submit that still needs its room, oldest first
        self._read = 0  # submits that have been read, so that their room is free again
        self._in_transit = InTransit()

    def put(self, message: Inbound) -> None:
        """Send a message, or keep it until there is room: never blocks. DeviceError if it can never fit."""
        if isinstance(message, Submit):
            if len(message.pixels) > self._memory.ring_images:
                raise DeviceError(f"{len(message.pixels)} images in a request, at most {self._memory.ring_images} fit")
            self._in_transit.put(message)
        with self._lock:
            self._outbox.append(message)
            self._flush()

    @property
    def load(self) -> Load:
        return self._in_transit.added_to(self._memory.published())

    def receive(self) -> list[Outbound] | None:
        """The child's next messages, None when it has ended."""
        try:
            read, messages = unpack(self._from.recv_bytes())
        except (EOFError, OSError):
            return None
        with self._lock:
            while self._read < read:
                self._free += self._in_ring.popleft()
                self._read += 1
            self._flush()
        received: list[Outbound] = messages
        return received

    def close(self) -> int:
        """Wait for the child's end, which has begun → its exit status, negative for a signal."""
        self.process.join()
        status = self.process.exitcode
        with self._lock:
            self._to.close()
            self._outbox.clear()
        self._from.close()
        if status is not None:  # None at the interpreter's exit, if multiprocessing has collected the child itself
            self.process.close()
        return status or 0

    def _flush(self) -> None:
        """Send while pipe and ring have room. The rest goes after the child's next message, which always comes once
        it has read something.
        """
        with suppress(OSError):  # the child has ended, as `receive` will find
            while self._outbox and self._poll.poll(0):
                frame: list[Any] = []
                while self._outbox and len(frame) < FRAME and (shared := self._share(self._outbox[0])) is not None:
                    frame.append(shared)
                    self._outbox.popleft()
                if not frame:
                    return
                self._to.send_bytes(pack(frame))

    def _share(self, message: Inbound) -> Any:
        """What crosses instead of a message; None if the ring has no room for it now."""
        if not isinstance(message, Submit):
            return message
        start, images = self._next, len(message.pixels)
        if images > self._free:
            return None
        self._memory.write(start, message.pixels)
        self._next = (start + images) % self._memory.ring_images
        self._free -= images
        self._in_ring.append(images)
        return SharedSubmit(message.request, start, images, message.parameters, message.arrival)


class Backoff:
    """Seconds to wait before the next start: `first`, doubled up to `longest`, reset after `healthy` seconds."""

    def __init__(self, first: float = 0.5, longest: float = 30.0, healthy: float = 60.0) -> None:
        self._first, self._longest, self._healthy = first, longest, healthy
        self._next = first

    def after(self, lived: float) -> float:
        if lived >= self._healthy:
            self._next = self._first
        wait, self._next = self._next, min(self._longest, 2 * self._next)
        return wait


class ProcessWorker:
    """Builds and runs the backend in a process of its own, so that a poisoned device context dies with that process.

    `build` must be picklable; `send` is called on the supervisor's thread. A child that dies after it was ready is
    restarted; one that never became ready, or died of what only the caller can change, is not. A child whose device
    does not respond for `hang_seconds` ends itself. See `ChildSpec` for the rest.
    """

    def __init__(
        self,
        build: BackendFactory,
        send: Send,
        *,
        permits: int | None,
        stages: int,
        size: int,
        ring_images: int,
        shadow_every: int = 0,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self._spec = ChildSpec(build, permits, shadow_every, stages, size, ring_images, hang_seconds)
        self._send, self._backoff = send, Backoff()
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._stopping = threading.Event()
        self._ready_since = math.inf  # never
        self._served = False
        self._thread = threading.Thread(target=self._supervise, name="msmlp-supervisor", daemon=True)
        self.ready = threading.Event()

    def start(self) -> None:
        atexit.register(self.kill)
        self._thread.start()

    def put(self, message: Inbound) -> None:
        """Send the engine a message; never blocks. Without a child it is dropped: Died ends all requests."""
        with self._lock:
            if isinstance(message, Stop):
                self._stopping.set()
                if self._child and not self.ready.is_set():
                    self._child.process.kill()  # nothing is in flight, and a warm-up may take long
            if self._child:
                self._child.put(message)

    @property
    def load(self) -> Load | None:
        with self._lock:
            return self._child.load if self._child and self.ready.is_set() else None

    @property
    def pid(self) -> int | None:
        """The child's process id, None without a child."""
        with self._lock:
            return self._child.process.pid if self._child else None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end; a child that takes longer than `timeout` is killed."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.kill()
            self._thread.join()

    def kill(self) -> None:
        """End the child immediately, and start no other."""
        self._stopping.set()
        with self._lock:
            if self._child:
                self._child.process.kill()

    def _supervise(self) -> None:
        # The child inherits the mask: a Ctrl-C that comes before it can ignore the signal does no harm. (Starting the
        # tracker of shared memory later would remove the mask.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        died = Died("engine failed")
        try:
            while True:
                died = self._live()
                if not died.restarting:
                    return
                wait = self._backoff.after(time.monotonic() - self._ready_since)
                log.error("engine down: %s; restart in %g s", died.detail, wait)
                self._send([died])
                if self._stopping.wait(wait):
                    died = Died("stopped")
                    return
        except Exception:
            died = Died("engine failed")  # the one before promised a restart
            log.exception("engine stopped")
        finally:
            self._send([died])
            atexit.unregister(self.kill)

    def _live(self) -> Died:
        """One child's life → how it ended, and whether it is to be restarted."""
        child = ChildProcess(self._spec)
        self._ready_since = math.inf
        with self._lock:
            self._child = child
            if self._stopping.is_set():
                child.process.kill()
        died = None
        try:
            while (messages := child.receive()) is not None:
                if messages and isinstance(messages[-1], Died):
                    died = messages.pop()
                elif messages and isinstance(messages[-1], Ready):
                    self._ready_since, self._served = time.monotonic(), True
                    self.ready.set()
                if messages:
                    self._send(messages)
        finally:
            with self._lock:
                self.ready.clear()
                self._child = None
            status = child.close()
        if not isinstance(died, Died):  # it ended without a message
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            died = Died(f"the engine's process {how}", restarting=True)
        if self._stopping.is_set():
            return Died("stopped")
        return replace(died, restarting=died.restarting and self._served)
