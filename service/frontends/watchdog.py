"""Who looks after a process that is alone: a thread of its own."""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable

from msmlp.service.engine.heartbeat import LOOK_SECONDS, Heartbeat

log = logging.getLogger("msmlp.server")


class Watchdog:
    """A thread that calls `hangs` once `beat()` has not changed for `seconds`."""

    def __init__(self, beat: Callable[[], float], seconds: float, hangs: Callable[[], None]) -> None:
        self._beat, self._seconds, self._hangs = beat, seconds, hangs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="msmlp-watchdog", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        heartbeat = Heartbeat()
        while not self._over.wait(LOOK_SECONDS):
            if heartbeat.look(self._beat(), time.monotonic()) > self._seconds:
                log.error("no sign of life for %g s; where all threads are:", self._seconds)
                faulthandler.dump_traceback()
                self._hangs()
                return
