"""Ends the engine's process when its thread never comes back, from a kernel or a driver that hangs.

A thread here sees that if whatever hangs has let go of Python's lock, as libraries do that wait for a device.
"""

import logging
import os
import threading
import time

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
