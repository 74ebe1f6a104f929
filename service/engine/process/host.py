"""An engine's process, from the side of the process that starts it, watches it and restarts it."""

import atexit
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Literal

from msmlp.model.errors import OptionError
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.heartbeat import LOOK_SECONDS, SILENCE_SECONDS, Heartbeat
from msmlp.service.engine.messages import Died, Ready
from msmlp.service.engine.process.child import SIGNALS, ChildSpec, main
from msmlp.service.engine.process.memory import Board, Inherited, Sent, new_file
from msmlp.service.logs import in_force

log = logging.getLogger("msmlp.engine")

MOST_RESTARTS = 3
"""Restarts in a row that did not become ready, after which the device leaves service."""

REAP_SECONDS = 5.0
"""How long the system may take to end a process that was killed, or has closed its socket."""

WARM_UP_SECONDS = 600.0
"""The longest that a process may take to become ready."""

SHARED_MEMORY = Path("/dev/shm")

BACKLOG = 128
"""Front ends that may wait for a starting engine."""

State = Literal["up", "restarting", "out"]
"""Of an engine: it serves, it is being started, or it has ended for good."""


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


class ChildProcess:
    """One child. One thread calls, but for `stop` and `kill`."""

    def __init__(self, spec: ChildSpec, listener: socket.socket) -> None:
        context = get_context("spawn")
        self._host, theirs = context.Pipe()
        file, sent = new_file(Board.bytes(spec.stages)), Sent(spec)
        self._board = Board(os.dup(file), spec.stages)
        self._process = context.Process(
            target=main,
            args=(sent, listener, theirs, Inherited(file), in_force()),
            name="msmlp-engine",
            daemon=True,
        )
        try:
            self._process.start()
        finally:
            os.close(file)
            sent.close()
        theirs.close()  # only the child holds this end now, so `receive` notices when it ends
        self.pid = self._process.pid

    @property
    def beat(self) -> float:
        return self._board.beat

    def receive(self, seconds: float) -> Ready | Died | Literal["nothing"] | None:
        """The child's next message within some seconds, or nothing; None when it has ended."""
        try:
            if not self._host.poll(seconds):
                return "nothing"
            message: Ready | Died = self._host.recv()
        except (EOFError, OSError):
            return None
        return message

    def stop(self) -> None:
        with suppress(OSError):  # it has ended
            self._host.send("stop")

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> int:
        """Wait for the child's end, which has begun → its exit status, negative for a signal."""
        self._process.join()
        status = self._process.exitcode
        self._host.close()
        if status is not None:  # None at the interpreter's exit, if multiprocessing has collected the child itself
            self._process.close()
        return status or 0


def _socket_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):  # as in a container whose root file system is read-only
            return SHARED_MEMORY
        reason = "no folder for temporary files can be written, and an engine process has its socket there"
        raise OptionError("TMPDIR", f"{reason}; set it to one that can, or choose --engine inline") from None


class EngineHost:
    """Builds and runs a backend in a process of its own, so that a poisoned device context dies with that process.

    Front ends connect to `address`, whichever process of the engine's serves there (`remote.RemoteWorker`). A process
    that dies after one was ready is restarted, unless it died of what only the caller can change; after MOST_RESTARTS
    that did not become ready, the engine is out for good, and nobody can connect any more. A process that gives no sign
    of life for `Ready.silence` seconds is killed.

    `build` must be picklable. `say` is told every Ready and Died, on the host's thread; the last is a Died that is not
    restarting. See `ChildSpec` for the rest.
    """

    def __init__(
        self,
        build: BackendFactory,
        *,
        permits: int | None,
        stages: int,
        shape: tuple[int, ...],
        shadow_every: int = 0,
        gpu: str | None = None,
        silence: float = SILENCE_SECONDS,
        say: Callable[[Ready | Died], None] = lambda message: None,
    ) -> None:
        self._folder = _socket_folder() / f"msmlp-{secrets.token_hex(8)}"
        self.address = str(self._folder / "engine")
        self._spec = ChildSpec(build, permits, shadow_every, stages, shape, str(self._folder), gpu, silence)
        self._say, self._backoff = say, Backoff()
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._stopping = threading.Event()
        self._served, self._failures = False, 0
        self._ready_since = math.inf  # never
        self._heartbeat = Heartbeat()
        self._thread = threading.Thread(target=self._supervise, name="msmlp-host", daemon=True)
        self.restarts = 0
        """Processes started after the first."""
        self.ready: Ready | None = None
        """What the process said that serves now."""
        self.died: Died | None = None
        """How the last process ended; None if there was no end yet, or another process serves since."""

    def start(self) -> None:
        """Listen at `address`, so that front ends can connect from now on, and start the process."""
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._folder.mkdir(mode=0o700)
            self._listener.bind(self.address)
            self._listener.listen(BACKLOG)
        except OSError as error:  # the path may be too long for a socket, or the disk full
            log.error("the engine cannot listen at %s: %s", self.address, error.strerror or error)
            self._end(Died(f"the engine cannot listen for front ends: {error.strerror or error}"))
            return
        atexit.register(self._at_exit)
        self._thread.start()

    @property
    def state(self) -> State:
        if self.ready is not None:
            return "up"
        return "out" if self.died is not None and not self.died.restarting else "restarting"

    @property
    def pid(self) -> int | None:
        """The process's id, None without one."""
        with self._lock:
            return self._child.pid if self._child else None

    def stop(self) -> None:
        """Let the process answer what is in flight, then end; one that is not ready is killed."""
        self._stopping.set()
        with self._lock:
            if self._child and self.ready is None:
                self._child.kill()  # nothing is in flight, and a warm-up may take long
            elif self._child:
                self._child.stop()

    def kill(self) -> None:
        """End the process immediately, and start no other."""
        self._stopping.set()
        with self._lock:
            if self._child:
                self._child.kill()

    def wait(self, timeout: float | None) -> bool:
        """Whether its end, which was asked for, came within `timeout` seconds."""
        if self._thread.ident:  # else it could not listen
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _at_exit(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _supervise(self) -> None:
        # The child inherits the mask: a Ctrl-C that comes before it can ignore the signal does no harm. (Starting the
        # tracker of shared memory later would remove the mask.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        died = Died("engine failed")
        try:
            while (died := self._live()).restarting:
                wait = self._backoff.after(time.monotonic() - self._ready_since)
                log.error("engine down: %s; restart in %g s", died.detail, wait)
                self._tell(died)
                if self._stopping.wait(wait):
                    died = Died("stopped")
                    break
                self.restarts += 1
        except Exception:
            died = Died("engine failed")  # the one before promised a restart
            log.exception("engine stopped")
        finally:
            if not self._stopping.is_set():
                log.error("engine out of service: %s", died.detail)
            self._end(died)
            atexit.unregister(self._at_exit)

    def _end(self, died: Died) -> None:
        self._tell(died)
        self._listener.close()  # front ends that waited for a process learn the end
        shutil.rmtree(self._folder, ignore_errors=True)

    def _live(self) -> Died:
        """One child's life → how it ended, and whether it is to be restarted."""
        child, self._heartbeat = ChildProcess(self._spec, self._listener), Heartbeat()
        self._ready_since, began = math.inf, time.monotonic()
        with self._lock:
            self._child = child
            if self._stopping.is_set():
                child.kill()
        died = None
        try:
            while (message := child.receive(LOOK_SECONDS)) is not None:
                if isinstance(message, Ready):
                    self._ready_since, self._served, self._failures = time.monotonic(), True, 0
                    self._tell(message)
                elif isinstance(message, Died):
                    died = message
                elif self._heartbeat.look(child.beat, time.monotonic()) > self._silence:
                    died = Died(f"the engine's process did not respond for {self._silence:g} s", restarting=True)
                    child.kill()
                elif self.ready is None and time.monotonic() - began > WARM_UP_SECONDS:
                    died = Died(f"the engine was not ready within {WARM_UP_SECONDS:g} s", restarting=True)
                    child.kill()
        finally:
            with self._lock:
                self._failures += self.ready is None
                self._child = self.ready = None
            status = child.close()
        if died is None:  # it ended without a message
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            died = Died(f"the engine's process {how}", restarting=True)
        if self._stopping.is_set():
            return Died("stopped")
        return replace(died, restarting=died.restarting and self._served and self._failures < MOST_RESTARTS)

    @property
    def _silence(self) -> float:
        """Seconds without a sign of life after which the process is killed; warming up may take any time."""
        return math.inf if self.ready is None else self.ready.silence

    def _tell(self, message: Ready | Died) -> None:
        if isinstance(message, Ready):
            self.ready, self.died = message, None
        else:
            self.died = message
        self._say(message)


class EngineHosts:
    """The hosts of all engines of a service; none where its front ends have theirs inside."""

    def __init__(self, hosts: Sequence[EngineHost] = ()) -> None:
        self.all = hosts
        self.cpu_seconds: dict[int, float] = {}

    def start(self) -> None:
        for host in self.all:
            host.start()

    def stop(self) -> None:
        for host in self.all:
            host.stop()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end that `stop` asked for; after `timeout` seconds they are killed, and waited for at most
        REAP_SECONDS more."""
        if not (left := self._left(self.all, timeout)):
            return
        for host in left:
            host.kill()
        if self._left(left, REAP_SECONDS):  # a hung driver can keep even a killed process
            log.error("the system has not ended all engines within %g s", REAP_SECONDS)

    @staticmethod
    def _left(hosts: Sequence[EngineHost], timeout: float | None) -> list[EngineHost]:
        """Those that have not ended within `timeout` seconds, for all together."""
        until = None if timeout is None else time.monotonic() + timeout
        return [host for host in hosts if not host.wait(until and max(0.0, until - time.monotonic()))]

    @property
    def addresses(self) -> list[str]:
        return [host.address for host in self.all]

    @property
    def states(self) -> list[State]:
        return [host.state for host in self.all]

    @property
    def pids(self) -> list[int]:
        return [pid for host in self.all if (pid := host.pid) is not None]

    @property
    def restarts(self) -> int:
        return sum(host.restarts for host in self.all)

    @property
    def lost(self) -> str:
        """Why the first of them that is down has died; empty if all are well."""
        return next((host.died.detail for host in self.all if host.died is not None), "")

    @property
    def all_out(self) -> bool:
        """Whether there were engines, and every one has ended for good."""
        return bool(self.all) and all(host.state == "out" for host in self.all)
