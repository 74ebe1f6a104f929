"""A line in the log for every request."""

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
"""What asks every few seconds, and would bury the rest."""


def log_access(account: Account) -> None:
    """Write a request's line: in words, and by fields for a log of JSON."""
    level = logging.DEBUG if account.route in PROBES else logging.INFO
    if log.isEnabledFor(level):
        told = _fields(account)
        log.log(level, _words(account, told), extra={"request_id": account.request_id, **told})


def _fields(account: Account) -> dict[str, Any]:
    told: dict[str, Any] = {
        "method": account.method,
        "route": account.route,
        "status": int(account.status),
        "duration_ms": round(1e3 * account.seconds, 3),
    }
    if account.images:
        told |= {"images": account.images, "exits": _exits(account), "gflops": round(account.gflops, 9)}
    if account.point:
        told |= {"operating_point": account.point.name, "source": account.point.source}
    if account.trace_id:
        told["trace_id"] = account.trace_id
    return told


def _exits(account: Account) -> dict[str, int]:
    """How many images left at each exit; `none` expired before the first."""
    left = Counter(np.concatenate([landed.exit for landed in account.landed]).tolist() if account.landed else [])
    return {str(exit) if exit else "none": left[exit] for exit in sorted(left)}


def _words(account: Account, told: dict[str, Any]) -> str:
    words = f"{account.method} {account.route} {account.status:d} in {told['duration_ms']:.1f} ms"
    if not told.get("exits"):
        return words
    exits = ", ".join(f"{number} at exit {exit}" for exit, number in told["exits"].items())
    images = f"{account.images} image{'s' * (account.images > 1)}"
    return f"{words}: {images}, {exits}, {account.gflops:.4g} GFLOPs"
