"""Ends the engine's process when its thread never comes back, from a kernel or a driver that hangs.

A thread here sees that if whatever hangs has let go of Python's lock, as libraries do that wait for a device.
"""

import logging
import os
import select
import signal
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from msmlp.service.engine.messages import Inbound, Load, Outbound, Ready, Submit
from msmlp.service.engine.process.wire import SharedMemory, SharedSubmit, pack, unpack
from msmlp.service.engine.transport import BackendFactory, freeze_gc, run
from msmlp.service.logs import Logging

log = logging.getLogger("msmlp.engine")

HANG_SECONDS = 30.0
"""Longer than this the engine's thread is never away from a healthy device: between two signs of life lies a batch or
two, and batches that honestly take so long make no service. Building and warming up may, and are not watched."""

LOOKS = 30
"""So many looks in a row that see no sign of life mean a hang. They are counted, not timed: a process that was frozen
for an hour (a paused container, a moved machine) has missed that hour's looks too."""


class Watchdog:
    """`alive` and `rest` are for the engine's thread, which is at rest until it is first alive."""

    def __init__(self, seconds: float = HANG_SECONDS) -> None:
        self._seconds = seconds
        self._signs = self._seen = self._looks = 0
        self._resting = True

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._watch, name="msmlp-watchdog", daemon=True).start()

    def alive(self) -> None:
        """The engine's thread has come round, and goes on with something that must end."""
        self._signs += 1
        self._resting = False

    def rest(self) -> None:
        """It waits for others now, however long that takes."""
        self._resting = True

    def hangs(self) -> bool:
        """Look once more → whether it has been away too long."""
        if self._resting or self._signs != self._seen:
            self._seen, self._looks = self._signs, 0
        else:
            self._looks += 1
        return self._looks >= LOOKS

    def _watch(self) -> None:
        while not self.hangs():
            time.sleep(self._seconds / LOOKS)
        log.error("the device has not come back for %g s: the engine's process ends", self._seconds)
        os._exit(1)


# FROM service/engine/process/child.py:
# The child's side: the process that owns the device.


def main(
    build: BackendFactory,
    memory: SharedMemory,
    inbound: Connection,
    outbound: Connection,
    capacity: int | None,
    shadow_every: int,
    hang_seconds: float,
    logs: Logging | None,
) -> None:
    """The engine's life in a process: see `seam.run`, and `watchdog` for `hang_seconds`."""
    # Ctrl-C and a service manager's SIGTERM reach the whole group, but what is in flight is answered first: the end
    # comes as a message. It comes at once when the parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="msmlp-parent", daemon=True).start()
    if logs is not None:
        logs.begin()
    watchdog = Watchdog(hang_seconds)
    watchdog.start()
    run(build, ChildPort(memory, inbound, outbound, watchdog), capacity=capacity, shadow_every=shadow_every)
    os._exit(0)  # everything is said, and taking torch apart may last seconds


class ChildPort:
    """The engine's end (seam.Port) in another process: it reads the pipe itself, so that no thread stands between.

    Every call is a sign of life; while the pipes are waited for, which is the parent's time, the engine is at rest.
    """

    def __init__(self, memory: SharedMemory, inbound: Connection, outbound: Connection, watchdog: Watchdog) -> None:
        self._memory, self._inbound, self._outbound, self._watchdog = memory, inbound, outbound, watchdog
        self._poll = select.poll()
        self._poll.register(inbound.fileno(), select.POLLIN)
        self._submits = self._images = self._said = 0

    def take(self, *, block: bool) -> list[Inbound]:
        """What has come; with `block` wait for it."""
        messages: list[Inbound] = []
        if block and self._said < self._submits:
            self.send([])  # the parent may be waiting for the places of what was taken in
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
        pixels = self._memory.read(message.start, message.images)
        return Submit(message.request, pixels, message.terms, message.arrival)

    def taken(self, message: Inbound) -> None:
        """Counted, as the parent needs the places again."""
        if isinstance(message, Submit):
            self._submits += 1
            self._images += len(message.pixels)
        self._watchdog.alive()

    def send(self, messages: list[Outbound]) -> None:
        """Hand messages over, and how many submits were taken in."""
        if messages and isinstance(messages[-1], Ready):
            freeze_gc()
        self._said = self._submits
        self._watchdog.rest()
        try:
            self._outbound.send_bytes(pack((self._submits, messages)))
        except OSError:
            _end()
        self._watchdog.alive()

    def publish(self, load: Load) -> None:
        """Into shared memory, where it wakes nobody."""
        self._memory.publish(load, self._submits, self._images)
        self._watchdog.alive()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    _end()


def _end() -> None:
    """At once, whatever runs: nobody is left to hear of it."""
    os._exit(1)
