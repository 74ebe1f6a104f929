"""Observers of requests besides metrics and statistics, as the settings say: the access log and traces."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msmlp.model.errors import OptionError, install_hint
from msmlp.service.telemetry.access_log import log_access
from msmlp.service.telemetry.record import Observer, RequestRecord, RequestRecords, tell

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from msmlp.service.telemetry.traces import Traces

log = logging.getLogger("msmlp.telemetry")

QUEUE_REQUESTS = 10_000
"""Requests that may wait for the log and the traces; more are dropped."""

CLOSE_SECONDS = 2
"""How long a stopping service waits for the log, and for the collector of traces."""


class BackgroundWorker:
    """Calls `observers`, in their order, on a thread of its own: a slow log or collector delays no request."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers
        self._queue: queue.Queue[RequestRecord | None] = queue.Queue(QUEUE_REQUESTS)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="msmlp-telemetry", daemon=True)
        self._thread.start()

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float) -> bool:
        """Work off the queue; False if it takes longer than that."""
        give_up = time.monotonic() + seconds
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(max(0.0, give_up - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        reported = 0
        while (record := self._queue.get()) is not None:
            tell(self._observers, record)
            dropped = self._dropped
            if dropped > reported and self._queue.empty():
                missing, reported = dropped - reported, dropped
                log.warning("%d requests are missing in the log and the traces, which are too slow", missing)


def trace_provider() -> "TracerProvider":
    """Where traces are sent.

    Raises:
        OptionError: a package for `--traces` is missing, or the environment has a wrong value.
    """
    try:
        from msmlp.service.telemetry.traces import otlp_provider
    except ModuleNotFoundError as error:
        raise OptionError("--traces", f"needs the package {error.name}: {install_hint('telemetry')}") from None
    return otlp_provider()


def traces_of(provider: "TracerProvider", model: dict[str, str]) -> "Traces":
    """The traces of a service; `model` is its model's name and version."""
    from msmlp.service.telemetry.traces import Traces

    return Traces(provider, model)


@asynccontextmanager
async def watched(records: RequestRecords, traces: "Traces | None", *, access_log: bool) -> AsyncIterator[None]:
    """The access log and traces, if wanted, see the requests inside."""
    observers: list[Observer] = [traces.ended] if traces is not None else []
    if access_log:
        observers.append(log_access)  # after the traces, whose ids it logs
    if not observers:
        yield
        return
    worker = BackgroundWorker(observers)
    records.observers.append(worker.ended)
    try:
        yield
    finally:
        logged = await asyncio.to_thread(worker.close, CLOSE_SECONDS)
        sent = traces is None or await asyncio.to_thread(traces.close, CLOSE_SECONDS)
        if not (logged and sent):
            log.warning("the last requests are missing in the log or the traces, which are too slow")
