"""Latency under an offered load: Poisson arrivals of mixed requests at a running service, without HTTP.

The generator shares process, cores and interpreter lock with the service. So everything is drawn beforehand, a request
is a view of the images, nothing is done an image, and its numbers are put together when the last answer is there. A
latency runs from when its request was due: a generator that comes too late makes the service look slower, not faster.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.offer import SIZES, Offer, named_points
from msmlp.service.engine.messages import Outbound, Ran
from msmlp.service.engine.result import Result
from msmlp.service.errors import OverloadedError
from msmlp.service.inference import ClassifyRequest, run
from msmlp.service.options import RequestOptions
from msmlp.service.service import Service
from msmlp.service.telemetry.record import Account

UNLOADED_SAMPLES = 10
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """The answers to a request, and where its operating point came from."""

    result: Result
    source: str


@dataclass
class Seen:
    """What came of an offer: `outcomes` by request; `shed` as (reason, images, brown-out level); CPU seconds."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    shed: list[tuple[str, int, int]] = field(default_factory=list)
    start: float = 0.0
    seconds: float = 0.0
    lag: list[float] = field(default_factory=list)
    generator_cpu: float = 0.0
    front_cpu: float = 0.0
    process_cpu: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)
    batch_images: Counter[int] = field(default_factory=Counter)

    def watch(self, message: Outbound) -> None:
        """Count what ran."""
        if isinstance(message, Ran):
            self.batches[message.stage] += 1
            self.batch_images[message.stage] += message.images


async def offer_load(service: Service, images: Pixels, offer: Offer) -> Seen:
    """Send every request when it is due, whatever became of those before, and wait for the last answer."""
    seen, doubled = Seen(), images[np.arange(len(images) + max(SIZES)) % len(images)]
    service.engine.watch(seen.watch)
    options = [RequestOptions(policy=point.name) for point in named_points(service.calibration.points)]
    sending: set[asyncio.Task[None]] = set()
    cpu = time.thread_time(), time.process_time()
    seen.start = time.monotonic()
    rows = zip(*(column.tolist() for column in (offer.due, offer.sizes, offer.points, offer.first)), strict=True)
    for number, (due, size, point, first) in enumerate(rows):
        wait = seen.start + due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        began = time.thread_time()
        arrival = time.monotonic()
        seen.lag.append(arrival - seen.start - due)
        call = ClassifyRequest(doubled[first : first + size], options[point], Account("bench", arrival))
        task = asyncio.create_task(_send(service, call, number, seen))
        sending.add(task)
        task.add_done_callback(sending.discard)
        seen.generator_cpu += time.thread_time() - began
    await asyncio.gather(*sending)
    seen.seconds = time.monotonic() - seen.start
    seen.front_cpu, seen.process_cpu = time.thread_time() - cpu[0], time.process_time() - cpu[1]
    return seen


async def _send(service: Service, call: ClassifyRequest, number: int, seen: Seen) -> None:
    try:
        result = await run(service, call)
        assert call.record.point is not None
        seen.outcomes[number] = Outcome(result, call.record.point.source)
    except OverloadedError as error:
        seen.shed.append((error.reason, len(call.images), service.engine.brownout_level))


async def unloaded_seconds(service: Service, images: Pixels) -> Mapping[int, float]:
    """Seconds that a request of each size takes alone, every image through the full cascade; medians."""
    exits = service.operating_points.exits
    options, rng = RequestOptions(thresholds=(1.0,) * (exits - 1)), np.random.default_rng(0)
    samples: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(UNLOADED_SAMPLES):
        for size in rng.permutation(SIZES).tolist():
            pixels, start = images[np.arange(size) % len(images)], time.monotonic()
            result = await run(service, ClassifyRequest(pixels, options, Account("bench", start)))
            samples[size].append(float(result.landed.max()) - start)
    return {size: float(np.median(seconds)) for size, seconds in samples.items()}
