"""Latency under an offered load: Poisson arrivals of mixed requests at a running service, without HTTP."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import OverloadedError
from service.inference import Call, classify
from service.options import RequestOptions
from service.state import Service

SIZES = (1, 2, 4, 8, 16, 32, 64)
MEAN_SIZE = sum(SIZES) / len(SIZES)


@dataclass
class _Seen:
    latencies_ms: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)
    degraded: int = 0
    shed: int = 0
    offered: int = 0


async def offered_load(
    service: Service, pixels: NDArray[np.uint8], images_per_second: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Offer a rate for some seconds, wait for the last answer → the contract's row.

    Request sizes are drawn from SIZES, thresholds from the named operating points. Nobody waits for an answer before
    sending the next request: an overloaded service gets no relief.
    """
    rng, seen = np.random.default_rng(seed), _Seen()
    names = [point.name for point in service.calibration.points if not point.name.startswith("p")]
    sending: set[asyncio.Task[None]] = set()
    start = due = time.monotonic()
    while due < start + seconds:
        size = int(rng.choice(SIZES))
        options = RequestOptions(policy=str(rng.choice(names)))
        rows = rng.integers(0, len(pixels), size)
        task = asyncio.create_task(_send(service, Call(pixels[rows], options, "bench", time.monotonic()), seen))
        sending.add(task)
        task.add_done_callback(sending.discard)
        due += rng.exponential(MEAN_SIZE / images_per_second)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*sending)
    took = time.monotonic() - start
    answered = len(seen.latencies_ms)
    percentiles = np.percentile(seen.latencies_ms, (50, 95, 99)).round(3).tolist() if answered else [None] * 3
    return {
        "offered": round(seen.offered / took, 1),
        "achieved": round(answered / took, 1),
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
        "mean_gflops": float(np.mean(seen.gflops)) if answered else None,
        "degraded": round(seen.degraded / max(1, answered), 4),
        "shed": round(seen.shed / max(1, seen.offered), 4),
    }


async def _send(service: Service, call: Call, seen: _Seen) -> None:
    seen.offered += len(call.images)
    try:
        document = (await classify(service, call)).document
    except OverloadedError:
        seen.shed += len(call.images)
        return
    for result in document["results"]:
        seen.latencies_ms.append(result["latency_ms"])
        seen.gflops.append(result["gflops"])
        seen.degraded += result["degraded"]
