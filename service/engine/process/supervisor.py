"""The engine as a process: a thread here starts the child, hears what it says, and starts another when it dies."""

import atexit
import logging
import math
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import resource_tracker

from msmlp.service.engine.messages import Died, Inbound, Load, Ready, Stop
from msmlp.service.engine.process.child import HANG_SECONDS
from msmlp.service.engine.process.link import ChildProcess, ChildSpec
from msmlp.service.engine.transport import BackendFactory, Send

log = logging.getLogger("msmlp.engine")


class Backoff:
    """Seconds to wait before the next start: `first`, doubling to `longest`, from the beginning after `healthy`."""

    def __init__(self, first: float = 0.5, longest: float = 30.0, healthy: float = 60.0) -> None:
        self._first, self._longest, self._healthy = first, longest, healthy
        self._next = first

    def after(self, lived: float) -> float:
        """The wait after a child that was ready for `lived` seconds."""
        if lived >= self._healthy:
            self._next = self._first
        wait, self._next = self._next, min(self._longest, 2 * self._next)
        return wait


class ProcessWorker:
    """Runs `build()` and everything after it in a process of its own: what the device does to it happens there alone.

    `build` must be picklable; `send` is called on the supervisor's thread. A child that dies having been ready is
    followed by another; one that dies before it ever was, or of what only the caller can mend, is the end.
    `places` is the most images of one request; one that does not come back from the device for `hang_seconds` ends
    itself. For the rest see `link.ChildSpec`.
    """

    def __init__(
        self,
        build: BackendFactory,
        send: Send,
        *,
        capacity: int | None,
        stages: int,
        size: int,
        places: int,
        shadow_every: int = 0,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self._child = ChildSpec(build, capacity, shadow_every, stages, size, places, hang_seconds)
        self._send, self._backoff = send, Backoff()
        self._lock = threading.Lock()
        self._link: ChildProcess | None = None
        self._stopping = threading.Event()
        self._ready_since = math.inf  # never
        self._served = False
        self._thread = threading.Thread(target=self._supervise, name="msmlp-supervisor", daemon=True)
        self.ready = threading.Event()

    def start(self) -> None:
        """Begin building and warming the backend; `ready` says when it is done."""
        atexit.register(self.kill)
        self._thread.start()

    def put(self, message: Inbound) -> None:
        """Hand the engine a message; never blocks. Without a child it is dropped: Died tells who was in flight."""
        with self._lock:
            if isinstance(message, Stop):
                self._stopping.set()
                if self._link and not self.ready.is_set():
                    self._link.kill()  # nothing is in flight, and a warm-up may take long
            if self._link:
                self._link.put(message)

    @property
    def load(self) -> Load | None:
        """What waits, those on their way included; None while the engine is not ready."""
        with self._lock:
            return self._link.load if self._link and self.ready.is_set() else None

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        with self._lock:
            return self._link.pid if self._link else None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end; a child that takes longer than `timeout` is killed."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.kill()
            self._thread.join()

    def kill(self) -> None:
        """End the child at once, and start no other."""
        self._stopping.set()
        with self._lock:
            if self._link:
                self._link.kill()

    def _supervise(self) -> None:
        # The child inherits the mask: a Ctrl-C that comes before it can ignore it does it no harm. (Starting the
        # tracker of shared memory would take the mask off again.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        died = Died("engine failed")
        try:
            while True:
                died = self._live()
                if not died.restarting:
                    return
                wait = self._backoff.after(time.monotonic() - self._ready_since)
                log.error("engine down: %s; another start in %g s", died.detail, wait)
                self._send([died])
                if self._stopping.wait(wait):
                    died = Died("stopped")
                    return
        except Exception:
            died = Died("engine failed")  # of the one before was said that another follows
            log.exception("engine stopped")
        finally:
            self._send([died])
            atexit.unregister(self.kill)

    def _live(self) -> Died:
        """One child's life → how it ended, and whether another is to follow."""
        link = ChildProcess(self._child)
        self._ready_since = math.inf
        with self._lock:
            self._link = link
            if self._stopping.is_set():
                link.kill()
        died = None
        try:
            while (messages := link.receive()) is not None:
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
                self._link = None
            status = link.close()
        if not isinstance(died, Died):  # it had no time for last words
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            died = Died(f"the engine's process {how}", restarting=True)
        if self._stopping.is_set():
            return Died("stopped")
        return replace(died, restarting=died.restarting and self._served)
