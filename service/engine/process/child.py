"""The engine's process: the core on its main thread, and a watchdog that ends it when the device never comes back."""

import logging
import os
import select
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from msmlp.service.engine.core import BackendFactory, run
from msmlp.service.engine.messages import Inbound, Load, Outbound, Ready, Submit
from msmlp.service.engine.process.wire import SharedMemory, SharedSubmit, pack, unpack
from msmlp.service.engine.transport import freeze_gc
from msmlp.service.logs import Logging

log = logging.getLogger("msmlp.engine")

HANG_SECONDS = 30.0
"""The longest silence of a healthy engine thread: a batch or two lie between two signs of life, and batches that take
this long make no service. Building and warming up may take longer, and are not watched."""

LOOKS = 30
"""Looks in a row without a sign of life that mean a hang. They are counted, not timed: a process that was frozen for an
hour (a paused container, a migrated machine) has missed that hour's looks too."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is started with; `build` crosses pickled.

    `ring_images` is how many images can be on their way to it, and the most per request; images are uint8
    [size, size, 3]. See `core.run` for `permits` and `shadow_every`, `Watchdog` for `hang_seconds`.
    """

    build: BackendFactory
    permits: int | None
    shadow_every: int
    stages: int
    size: int
    ring_images: int
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
        """The engine's thread waits for the parent, which may take any time."""
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


def main(
    spec: ChildSpec, memory: SharedMemory, inbound: Connection, outbound: Connection, logs: Logging | None
) -> None:
    """The process's life; `logs` is how the parent logs."""
    # Ctrl-C and a service manager's SIGTERM reach the whole process group, but images in flight are answered first:
    # the end comes as a message, or immediately when the parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="msmlp-parent", daemon=True).start()
    if logs is not None:
        logs.begin()
    watchdog = Watchdog(spec.hang_seconds)
    watchdog.start()
    port = ChildPort(memory, inbound, outbound, watchdog)
    run(spec.build, port, permits=spec.permits, shadow_every=spec.shadow_every)
    os._exit(0)  # all messages are sent, and tearing torch down may take seconds


class ChildPort:
    """The core's end (core.Port) in another process. It reads the pipe itself, without a thread in between.

    Every call is a sign of life; while it waits for the parent, the engine is at rest.
    """

    def __init__(self, memory: SharedMemory, inbound: Connection, outbound: Connection, watchdog: Watchdog) -> None:
        self._memory, self._inbound, self._outbound, self._watchdog = memory, inbound, outbound, watchdog
        self._poll = select.poll()
        self._poll.register(inbound.fileno(), select.POLLIN)
        self._submits = self._reported = 0

    def take(self, *, block: bool) -> list[Inbound]:
        messages: list[Inbound] = []
        if block and self._reported < self._submits:
            self.send([])  # the parent may wait for their images' room in the ring
        self._watchdog.rest()
        try:
            while (block and not messages) or self._poll.poll(0):
                messages += map(self._read, unpack(self._inbound.recv_bytes()))
        except (EOFError, OSError):
            _end()
        self._watchdog.alive()
        return messages

    def _read(self, message: Inbound | SharedSubmit) -> Inbound:
        if not isinstance(message, SharedSubmit):
            return message
        self._submits += 1
        pixels = self._memory.read(message.start, message.images)
        return Submit(message.request, pixels, message.parameters, message.arrival)

    def send(self, messages: list[Outbound]) -> None:
        """Send messages, and how many submits were read: their images' room in the ring is free again."""
        if messages and isinstance(messages[-1], Ready):
            freeze_gc()
        self._reported = self._submits
        self._watchdog.rest()
        try:
            self._outbound.send_bytes(pack((self._submits, messages)))
        except OSError:
            _end()
        self._watchdog.alive()

    def publish(self, load: Load) -> None:
        self._memory.publish(load)
        self._watchdog.alive()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    _end()


def _end() -> None:
    """Exit immediately, even in mid-batch: the parent is gone."""
    os._exit(1)
