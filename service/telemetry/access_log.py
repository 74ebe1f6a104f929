"""The access log: one line per request."""

import logging
from collections import Counter
from typing import Any

import numpy as np

from msmlp.service.telemetry.record import RequestRecord

log = logging.getLogger("msmlp.access")

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
"""Routes that are asked every few seconds and would bury the rest; logged at level debug."""


def log_access(record: RequestRecord) -> None:
    """Log a request: as text, and as fields for a JSON log."""
    level = logging.DEBUG if record.route in PROBES else logging.INFO
    if log.isEnabledFor(level):
        fields = _fields(record)
        log.log(level, _text(record, fields), extra={"request_id": record.request_id, **fields})


def _fields(record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": record.method,
        "route": record.route,
        "status": int(record.status),
        "duration_ms": round(1e3 * record.seconds, 3),
    }
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


def _text(record: RequestRecord, fields: dict[str, Any]) -> str:
    text = f"{record.method} {record.route} {record.status:d} in {fields['duration_ms']:.1f} ms"
    if not fields.get("exits"):
        return text
    exits = ", ".join(f"{number} at exit {exit}" for exit, number in fields["exits"].items())
    images = f"{record.images} image{'s' * (record.images > 1)}"
    return f"{text}: {images}, {exits}, {record.gflops:.4g} GFLOPs"
