"""Observers of requests on a thread of their own: whoever takes logs or traces too slowly holds nobody up."""

import logging
import queue
import threading
import time

from msmlp.service.telemetry.record import Account, Observer, tell

log = logging.getLogger("msmlp.telemetry")

MOST = 10_000
"""Requests that may wait to be told of; those that come when so many do are dropped."""

CLOSE_SECONDS = 2
"""How long an ending service waits for the log, and for the collector of traces: whoever ends it waits no longer than
for what is in flight and a little more."""


class BackgroundWorker:
    """Tells `observers`, in their order, later."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers
        self._queue: queue.Queue[Account | None] = queue.Queue(MOST)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="msmlp-telemetry", daemon=True)
        self._thread.start()

    def ended(self, account: Account) -> None:
        """A request is over."""
        try:
            self._queue.put_nowait(account)
        except queue.Full:
            self._dropped += 1

    def close(self) -> bool:
        """Tell of all that wait; False when that took longer than CLOSE_SECONDS and is given up."""
        given_up = time.monotonic() + CLOSE_SECONDS
        try:
            self._queue.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return False
        self._thread.join(max(0.0, given_up - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        said = 0
        while (account := self._queue.get()) is not None:
            tell(self._observers, account)
            dropped = self._dropped
            if dropped > said and self._queue.empty():
                missing, said = dropped - said, dropped
                log.warning("%d requests are missing in the log and the traces, which were taken too slowly", missing)
