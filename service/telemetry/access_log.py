"""The access log: one line per request."""

import logging
from collections import Counter
from typing import Any

import numpy as np

from msmlp.service.telemetry.record import Account

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


def log_access(account: Account) -> None:
    """Log a request: as text, and as fields for a JSON log."""
    level = logging.DEBUG if account.route in PROBES else logging.INFO
    if log.isEnabledFor(level):
        fields = _fields(account)
        log.log(level, _text(account, fields), extra={"request_id": account.request_id, **fields})


def _fields(account: Account) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": account.method,
        "route": account.route,
        "status": int(account.status),
        "duration_ms": round(1e3 * account.seconds, 3),
    }
    if account.images:
        fields |= {"images": account.images, "exits": _exits(account), "gflops": round(account.gflops, 9)}
    if account.point:
        fields |= {"operating_point": account.point.name, "source": account.point.source}
    if account.trace_id:
        fields["trace_id"] = account.trace_id
    return fields


def _exits(account: Account) -> dict[str, int]:
    """How many images left at each exit; `none` expired before the first."""
    left = Counter(np.concatenate([landed.exit for landed in account.landed]).tolist() if account.landed else [])
    return {str(exit) if exit else "none": left[exit] for exit in sorted(left)}


def _text(account: Account, fields: dict[str, Any]) -> str:
    text = f"{account.method} {account.route} {account.status:d} in {fields['duration_ms']:.1f} ms"
    if not fields.get("exits"):
        return text
    exits = ", ".join(f"{number} at exit {exit}" for exit, number in fields["exits"].items())
    images = f"{account.images} image{'s' * (account.images > 1)}"
    return f"{text}: {images}, {exits}, {account.gflops:.4g} GFLOPs"
