"""The access log and traces: optional observers of requests, called on a background thread."""

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from msmlp.model.errors import OptionError, install_hint
from msmlp.service.telemetry.record import Observer, RequestRecord, RequestRecords, tell

if TYPE_CHECKING:
    from msmlp.service.telemetry.traces import Traces

log = logging.getLogger("msmlp.telemetry")
access = logging.getLogger("msmlp.access")

QUEUE_REQUESTS = 10_000
"""Requests that may wait for the log and the traces; more are dropped."""

CLOSE_SECONDS = 2
"""How long a stopping service waits for the log, and for the collector of traces."""

PROBES = {
    "/livez",
    "/readyz",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}/ready",
    "grpc/ServerLive",
    "grpc/ServerReady",
    "grpc/ModelReady",
}
"""Routes that are polled every few seconds and would bury the rest; logged at level debug."""


class BackgroundWorker:
    """Calls `observers`, in their order, on a thread of its own: a slow log or collector delays no request."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers
        self._queue: queue.Queue[RequestRecord | None] = queue.Queue(QUEUE_REQUESTS)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="msmlp-telemetry", daemon=True)
        self._thread.start()

    def ended(self, record: RequestRecord) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float) -> bool:
        """Finish the queue; False if it takes longer than `seconds`."""
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
                log.warning("%d requests are missing from the log and the traces, which are too slow", missing)


def log_access(record: RequestRecord) -> None:
    level = logging.DEBUG if record.route in PROBES else logging.INFO
    if access.isEnabledFor(level):
        fields = _log_fields(record)
        access.log(level, _log_text(record, fields), extra={"request_id": record.request_id, **fields})


def _log_fields(record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": record.method,
        "route": record.route,
        "status": int(record.status),
        "duration_ms": round(1e3 * record.seconds, 3),
    }
    if record.key and record.key.name:
        fields["key"] = record.key.name
    if record.images:
        fields |= {"images": record.images, "exits": _exits(record), "gflops": round(record.gflops, 9)}
    if record.point:
        fields |= {"operating_point": record.point.name, "source": record.point.source}
    if record.trace_id:
        fields["trace_id"] = record.trace_id
    return fields


def _exits(record: RequestRecord) -> dict[str, int]:
    """How many images left at each exit; `none` expired before the first."""
    left = Counter(np.concatenate([landed.exit for landed in record.landed]).tolist() if record.landed else [])
    return {str(exit) if exit else "none": left[exit] for exit in sorted(left)}


def _log_text(record: RequestRecord, fields: dict[str, Any]) -> str:
    text = f"{record.method} {record.route} {record.status:d} in {fields['duration_ms']:.1f} ms"
    text += f" by {fields['key']}" if "key" in fields else ""
    if not fields.get("exits"):
        return text
    exits = ", ".join(f"{number} at exit {exit}" for exit, number in fields["exits"].items())
    images = f"{record.images} image{'s' * (record.images > 1)}"
    return f"{text}: {images}, {exits}, {record.gflops:.4g} GFLOPs"


def trace_factory() -> Callable[[dict[str, str]], "Traces"]:
    """What makes the traces of a service from its model's name and version.

    Raises:
        OptionError: a package for `--traces` is missing, or the environment has a wrong value.
    """
    try:
        from msmlp.service.telemetry.traces import Traces, otlp_provider
    except ModuleNotFoundError as error:
        raise OptionError("--traces", f"needs the package {error.name}: {install_hint('telemetry')}") from None
    return partial(Traces, otlp_provider())


@asynccontextmanager
async def watched(records: RequestRecords, traces: "Traces | None", *, access_log: bool) -> AsyncIterator[None]:
    """Within the block, requests are logged and traced, as asked."""
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
            log.warning("the last requests are missing from the log or the traces, which are too slow")
