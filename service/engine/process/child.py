"""The engine's process: the core on its main thread, and a watchdog that ends it when the device never comes back."""

import logging
import os
import shutil
import signal
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from msmlp.service.engine.core import BackendFactory, run
from msmlp.service.engine.process.port import ChildPort
from msmlp.service.logs import Logging

log = logging.getLogger("msmlp.engine")

HANG_SECONDS = 30.0
"""The longest silence of a healthy engine thread: a batch or two lie between two signs of life, and batches that take
this long make no service. Building and warming up may take longer, and are not watched."""

LOOKS = 30
"""Looks in a row without a sign of life that mean a hang. They are counted, not timed: a process that was frozen for an
hour (a paused container, a migrated machine) has missed that hour's looks too."""


DRAIN_SECONDS = 5.0
"""How long the last answers may take to be read."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is started with; `build` crosses pickled.

    Images are uint8 [size, size, 3]. `folder` is removed if the host ends without its own end; `gpu` is the one GPU
    that the process may see (None: all). See `core.run` for `permits` and `shadow_every`, `Watchdog` for
    `hang_seconds`.
    """

    build: BackendFactory
    permits: int | None
    shadow_every: int
    stages: int
    size: int
    folder: str
    gpu: str | None = None
    hang_seconds: float = HANG_SECONDS


class Watchdog:
    """Ends the process when the engine's thread hangs in a kernel or a driver.

    It only sees hangs that have released Python's lock, as libraries do that wait for a device. `alive` and `rest` are
    called by the engine's thread, which is at rest until it is first alive.
    """

    def __init__(self, seconds: float = HANG_SECONDS) -> None:
        self._seconds = seconds
        self._signs = self._seen = self._looks = 0
        self._resting = True

    def start(self) -> None:
        threading.Thread(target=self._watch, name="msmlp-watchdog", daemon=True).start()

    def alive(self) -> None:
        self._signs += 1
        self._resting = False

    def rest(self) -> None:
        """The engine's thread waits for others, which may take any time."""
        self._resting = True

    def hangs(self) -> bool:
        """Look once more → whether the thread has been silent too long."""
        if self._resting or self._signs != self._seen:
            self._seen, self._looks = self._signs, 0
        else:
            self._looks += 1
        return self._looks >= LOOKS

    def _watch(self) -> None:
        while not self.hangs():
            time.sleep(self._seconds / LOOKS)
        log.error("the device has not responded for %g s: the engine's process ends", self._seconds)
        os._exit(1)


def begin(logs: Logging | None, folder: str | None = None) -> None:
    """Begin a process of a service: it logs as the parent does, and ends with it, and then removes `folder`."""
    # Ctrl-C and a service manager's SIGTERM reach the whole process group, but what is in flight is answered first:
    # the end comes as a message, or immediately when the parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(folder,), name="msmlp-parent", daemon=True).start()
    if logs is not None:
        logs.begin()


def _end_with_parent(folder: str | None) -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # even in mid-batch


def main(spec: ChildSpec, listener: socket.socket, host: Connection, logs: Logging | None) -> None:
    """The engine's life; `logs` is how the host logs."""
    begin(logs, spec.folder)
    if spec.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec.gpu
    watchdog = Watchdog(spec.hang_seconds)
    watchdog.start()
    port = ChildPort(listener, host, watchdog, stages=spec.stages, size=spec.size)
    run(spec.build, port, permits=spec.permits, shadow_every=spec.shadow_every)
    port.drain(DRAIN_SECONDS)
    os._exit(0)  # tearing torch down may take seconds
