"""All offered loads, each on a service of its own, so that none begins with another's backlog."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.costs import StageCosts
from msmlp.bench.load import offer_load, unloaded_seconds
from msmlp.bench.loadrow import Context, Judged
from msmlp.bench.offer import SIZES, draw, named_points
from msmlp.model.errors import DeviceError
from msmlp.service.engine.transport import freeze_gc
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings, load_settings


@dataclass(frozen=True)
class LoadOptions:
    """What is served, and `loads` as shares of `capacity` images/s, `seconds` each."""

    weights: Path
    backend: str
    device: str
    dtype: str
    engine: str
    max_batch: int
    capacity: float
    seconds: float
    loads: tuple[float, ...]
    costs: StageCosts

    @property
    def settings(self) -> Settings:
        """The service's, all else as it is by default or in the environment."""
        return load_settings(
            weights=self.weights,
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            engine=self.engine,
            max_batch=self.max_batch,
        )


async def offered_loads(
    options: LoadOptions, images: NDArray[np.uint8], progress: Callable[[str], None]
) -> dict[str, Any]:
    """The document's fields on load."""
    progress("requests alone, through the full cascade")
    async with started(options.settings) as service:
        unloaded = await unloaded_seconds(service, images)
    rows = []
    for seed, load in enumerate(options.loads):
        rate = load * options.capacity
        progress(f"offering {100 * load:.0f} % of {options.capacity:.0f} images/s for {options.seconds:.0f} s")
        async with started(options.settings) as service:
            points = named_points(service.calibration.points)
            offer = draw(np.random.default_rng(seed), rate, options.seconds, len(points), len(images))
            context = Context(options.costs, service.facts.gflops, unloaded, _max_wait(service))
            seen = await offer_load(service, images, offer)
            rows.append({"load": load, **Judged(offer, seen, context).row(options.seconds)})
    return {
        "load_capacity_images_per_second": options.capacity,
        "load_seconds": options.seconds,
        "load_request_sizes": list(SIZES),
        "load_policies": [point.name for point in points],
        "load_max_batch": options.max_batch,
        "load_engine": options.engine,
        "unloaded_ms": {str(size): 1e3 * seconds for size, seconds in unloaded.items()},
        "load": rows,
    }


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Service]:
    """A running service, ended at the end."""
    service = build_service(settings)
    service.engine.start()
    try:
        while not service.engine.up:
            if service.engine.down:
                raise DeviceError("the engine could not be started")
            await asyncio.sleep(0.05)
        freeze_gc()  # as the app does
        yield service
    finally:
        await service.engine.stop()
        service.decoders.shutdown()


def _max_wait(service: Service) -> float:
    return service.settings.max_wait_ms / 1e3 or float("inf")
