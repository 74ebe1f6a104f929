"""`msmlp bench http`: requests a second and latency of a running service, over real sockets."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from model.errors import DeviceError, MsmlpError


class UnreachableError(MsmlpError):
    """No service answers at the URL."""


@dataclass
class _Seen:
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)


def bench_http(
    url: str,
    images: list[bytes],
    *,
    connections: tuple[int, ...] = (1, 8, 32),
    seconds: float = 5.0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Send `images` in turn, one a request, over so many connections at a time for some seconds each.

    The client runs in this one process: on few cores it takes its share of what it measures.

    Raises:
        UnreachableError: nothing answers at `url`.
        DeviceError: the service is there but not ready.
    """
    rows = []
    for count in connections:
        progress(f"{count} connections for {seconds:.0f} s")
        rows.append({"connections": count, **asyncio.run(_load(url, images, count, seconds))})
    return {"url": url, "images": len(images), "seconds": seconds, "load": rows}


async def _load(url: str, images: list[bytes], connections: int, seconds: float) -> dict[str, Any]:
    seen = _Seen()
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        await _ready(client, url)
        start = time.monotonic()
        await asyncio.gather(*(_sender(client, images, n, start + seconds, seen) for n in range(connections)))
        took = time.monotonic() - start
    percentiles = (1e3 * np.percentile(seen.seconds, (50, 95, 99))).round(3).tolist() if seen.seconds else [None] * 3
    answered = sum(seen.exits.values())
    return {
        "requests_per_second": round(answered / took, 1),
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
        "statuses": dict(seen.statuses),
        "exit_share": {str(k): round(n / answered, 4) for k, n in sorted(seen.exits.items())},
    }


async def _ready(client: httpx.AsyncClient, url: str) -> None:
    try:
        answer = await client.get("/readyz")
    except httpx.HTTPError:
        raise UnreachableError(f"nothing answers at {url}; start it with msmlp serve, or give --url") from None
    if answer.status_code != 200:
        raise DeviceError(f"the service at {url} is not ready (status {answer.status_code})")


async def _sender(client: httpx.AsyncClient, images: list[bytes], first: int, until: float, seen: _Seen) -> None:
    number = first
    while (start := time.monotonic()) < until:
        content = images[number % len(images)]
        number += 1
        try:
            answer = await client.post(
                "/classify", content=content, headers={"Content-Type": "application/octet-stream"}
            )
        except httpx.HTTPError as error:
            seen.statuses[type(error).__name__] += 1
            continue
        seen.statuses[str(answer.status_code)] += 1
        if answer.status_code == 200:
            seen.seconds.append(time.monotonic() - start)
            seen.exits[answer.json()["results"][0]["exit"]] += 1
