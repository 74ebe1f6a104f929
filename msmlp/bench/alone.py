"""What the engine of a service does without HTTP: the images of a request, submitted again as soon as they are done.

Runs in a process of its own, whose service stays for all rounds.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msmlp.bench.bodies import pixels
from msmlp.bench.images import pick_images
from msmlp.bench.null_server import choose_null
from msmlp.service.options import NO_OPTIONS
from msmlp.service.service import Service, build_service
from msmlp.service.settings import load_settings

_RUNNER = asyncio.Runner()
_SERVICES: list[Service] = []


def start(weights: Path | None, capacity: int, null: bool) -> None:
    """Build the service and wait until its engine is ready."""
    more: dict[str, Any] = {} if weights is None else {"weights": weights}
    choose: dict[str, Callable[..., Any]] = {"choose": choose_null} if null else {}
    service = build_service(load_settings(capacity=capacity, max_wait_ms=0, **more), **choose)
    _SERVICES.append(service)
    _RUNNER.run(_begin(service))


async def _begin(service: Service) -> None:
    service.engine.start()
    while not service.engine.up:
        if service.engine.down:
            service.engine.check()
        await asyncio.sleep(0.05)


def images_per_second(submissions: int, seconds: float) -> float:
    """With so many submissions at once, under the default operating point."""
    return _RUNNER.run(_run(_SERVICES[0], submissions, seconds))


async def _run(service: Service, submissions: int, seconds: float) -> float:
    exits = service.operating_points.resolve(NO_OPTIONS).exits
    images = pixels(list(pick_images(None, 64, service.weights.manifest.cascade.image_size)))
    start, done = time.perf_counter(), 0

    async def submit_on() -> None:
        nonlocal done
        while time.perf_counter() < start + seconds:
            with service.permits(len(images)):
                await service.engine.classify(images, exits)
            done += len(images)

    await asyncio.gather(*(submit_on() for _ in range(submissions)))
    return done / (time.perf_counter() - start)


def end() -> None:
    """Stop the engine."""
    _RUNNER.run(_SERVICES[0].engine.stop())
    _RUNNER.close()
