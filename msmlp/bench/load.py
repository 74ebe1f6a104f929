"""Latency under an offered load: Poisson arrivals of mixed requests at a running service, without HTTP.

The generator shares process, cores and interpreter lock with the service. So everything is drawn beforehand, a request
is a view of the images, no work is done per image, and results are put together after the last answer. A latency runs
from when its request was due: a generator that comes too late makes the service look slower, not faster.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np

from msmlp.bench.stages import Pixels
from msmlp.model.errors import DeviceError
from msmlp.model.text import has_own_name, percent
from msmlp.model.weights import OperatingPoint
from msmlp.service.engine.result import Result
from msmlp.service.errors import OverloadedError
from msmlp.service.inference import ClassifyRequest, run
from msmlp.service.memory import tune_gc
from msmlp.service.options import RequestOptions
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings
from msmlp.service.telemetry.record import RequestRecord

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Images per request."""
MEAN_SIZE = sum(SIZES) / len(SIZES)


class Request(NamedTuple):
    """When it is `due` (seconds from the start), its `size`, the place of its operating point, and its first image."""

    due: float
    size: int
    point: int
    first: int


def draw(rng: np.random.Generator, images_per_second: float, seconds: float, points: int, images: int) -> list[Request]:
    """Requests for `seconds`: exponential gaps, sizes from SIZES and operating points with equal chances."""
    rate = images_per_second / MEAN_SIZE
    gaps = rng.exponential(1 / rate, size=int(2 * rate * seconds) + 64)
    due = np.cumsum(gaps) - gaps[0]
    due = due[due < seconds]
    drawn = due, rng.choice(SIZES, len(due)), rng.integers(0, points, len(due)), rng.integers(0, images, len(due))
    return [Request(*row) for row in zip(*(column.tolist() for column in drawn), strict=True)]


def named_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The operating points that requests name: all but the numbered ones between."""
    return [point for point in points if has_own_name(point.name)]


async def offered_loads(
    settings: Settings,
    images: Pixels,
    capacity: float,
    loads: Sequence[float],
    seconds: float,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row per load, as a share of `capacity` images/s; each has a fresh service, so that none inherits a backlog."""
    rows = []
    for seed, load in enumerate(loads):
        progress(f"offering {percent(load, 0)} of {capacity:.0f} images/s for {seconds:.0f} s")
        async with started(settings) as service:
            points = len(named_points(service.calibration.points))
            requests = draw(np.random.default_rng(seed), load * capacity, seconds, points, len(images))
            row = await offer_load(service, images, requests, seconds)
            rows.append({"load": load, **row})
    return rows


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Service]:
    service = build_service(settings)
    service.engine.start()
    try:
        while not service.engine.up:
            if service.engine.down:
                raise DeviceError("the engine could not start")
            await asyncio.sleep(0.05)
        tune_gc()  # as the app does
        yield service
    finally:
        await service.engine.stop()
        service.decoders.shutdown()


async def offer_load(service: Service, images: Pixels, requests: Sequence[Request], seconds: float) -> dict[str, Any]:
    """Send every request when it is due, without waiting for earlier ones, and wait for the last answer.

    In the row, `degraded` and `shed` are shares of images.
    """
    doubled = images[np.arange(len(images) + max(SIZES)) % len(images)]
    options = [RequestOptions(policy=point.name) for point in named_points(service.calibration.points)]
    sent, start = [], time.monotonic()
    for request in requests:
        await asyncio.sleep(max(0.0, start + request.due - time.monotonic()))
        pixels = doubled[request.first : request.first + request.size]
        call = ClassifyRequest(pixels, options[request.point], RequestRecord("bench", time.monotonic()))
        sent.append(asyncio.create_task(_send(service, call)))
    results = await asyncio.gather(*sent)
    ran = max(seconds, time.monotonic() - start)
    answered = [(start + r.due, *found) for r, found in zip(requests, results, strict=True) if found is not None]
    offered, done = sum(request.size for request in requests), sum(len(result.exit) for _, result, _ in answered)
    latencies = np.concatenate([np.zeros(0), *(result.landed - due for due, result, _ in answered)])
    exits = np.concatenate([np.zeros(0, np.int64), *(result.exit for _, result, _ in answered)])
    browned_out = sum(len(result.exit) for _, result, degraded in answered if degraded)
    return {
        "offered": offered / seconds,
        "achieved": done / ran,
        **{f"p{p}_ms": float(1e3 * np.percentile(latencies, p)) if done else None for p in (50, 95, 99)},
        "mean_gflops": float(np.array([0.0, *service.facts.gflops])[exits].mean()) if done else None,
        "degraded": browned_out / max(1, done),
        "shed": (offered - done) / max(1, offered),
    }


async def _send(service: Service, call: ClassifyRequest) -> tuple[Result, bool] | None:
    """The result, and whether brown-out chose the operating point; None if the request was shed."""
    try:
        result = await run(service, call)
    except OverloadedError:
        return None
    return result, call.record.point is not None and call.record.point.source == "brownout"
