"""What the host costs, with no device at all: the loop, the scheduler alone, and a request through the façade."""

import asyncio
import statistics
import time
from functools import wraps
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.null_server import NullBackend
from msmlp.bench.strategies import Floats, Saturated
from msmlp.model.backends.protocol import warm_up
from msmlp.model.errors import DeviceError
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.latency import LatencyModel
from msmlp.service.engine.messages import Terms
from msmlp.service.engine.scheduler import Scheduler

Scores = NDArray[np.float32]

RUNS = 20
SINGLES = 300
SCHEDULER_BATCHES = 1024, 256
REQUEST = 64
"""Images of a request while the scheduler alone is timed."""


def loop_us_per_image(scores: Scores, thresholds: Floats, max_batch: int) -> float:
    """Microseconds of scheduler and loop an image, all its stages together; `scores` [N, K] say who exits."""
    backend = _null(scores, max_batch)
    engine, nothing = Saturated(backend, warm_up(backend)), _nothing(len(scores))
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(nothing, thresholds)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times) / len(scores)


def host_costs(scores: Scores, thresholds: Floats) -> dict[str, Any]:
    """The scheduler alone, by batch size and for a single ticket, and a single image through the façade."""
    stages = scores.shape[1]
    return {
        "scheduler_us_per_image_and_stage": {
            str(batch): scheduler_us(scores, thresholds, batch) for batch in SCHEDULER_BATCHES
        },
        "scheduler_request_images": REQUEST,
        "scheduler_us_single_ticket": single_ticket_us(stages),
        "facade_us_single_image": asyncio.run(facade_us(stages, 1.0)),
        "facade_us_first_exit": asyncio.run(facade_us(stages, 0.0)),
        "stages": stages,
    }


def scheduler_us(scores: Scores, thresholds: Floats, batch: int) -> float:
    """Microseconds the scheduler takes an image and stage, in batches of `batch`, in requests of REQUEST images."""
    rows = np.arange(4 * batch) % len(scores)
    backend = _null(scores[rows], batch)
    engine, nothing, costs = Saturated(backend, warm_up(backend), REQUEST), _nothing(len(rows)), []
    watch = _watched(engine)
    for _ in range(RUNS):
        watch.seconds = 0.0
        engine.run(nothing, thresholds)
        costs.append(1e6 * watch.seconds / sum(images for _, images in engine.batches))
    return statistics.median(costs)


def single_ticket_us(stages: int) -> float:
    """Microseconds of scheduler for one image that goes through all stages alone: every call that the loop makes."""
    times = LatencyModel((1,), np.ones((stages, 1)))
    scheduler, costs = Scheduler(1024, stages, times), []
    slots, terms, score = np.zeros(1, dtype=np.int64), Terms(np.ones(stages - 1), 1, stages), np.zeros(1, np.float32)
    for request in range(SINGLES):
        start = time.perf_counter()
        scheduler.add(slots, request, terms, 0.0)
        while not scheduler.idle():
            scheduler.overdue(0.0, 0.0)
            batch = scheduler.next_batch(0.0)
            assert batch is not None
            scheduler.overdue(0.0, batch.seconds)
            scheduler.settle(batch, score, 0.0)
        costs.append(time.perf_counter() - start)
    return 1e6 * statistics.median(costs)


async def facade_us(stages: int, threshold: float) -> float:
    """Microseconds from `AsyncEngine.classify` to its result, one image alone, engine on a thread.

    With `threshold` 1 it goes through all stages, with 0 it leaves at the first exit.
    """
    scores = np.zeros((1024, stages), dtype=np.float32)
    engine = AsyncEngine(lambda: _null(scores, 64), permits=len(scores))
    engine.start()
    while not engine.up:
        if engine.down:
            raise DeviceError("the engine could not be started")
        await asyncio.sleep(0.01)
    pixels, terms, times = _nothing(1), Terms(np.full(stages - 1, threshold), 1, stages), []
    for _ in range(SINGLES):
        start = time.perf_counter()
        await engine.classify(pixels, terms)
        times.append(time.perf_counter() - start)
    await engine.stop()
    return 1e6 * statistics.median(times)


class _Watched:
    """A scheduler whose public methods add up what they take."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.seconds = 0.0
        self._scheduler = scheduler
        for name in dir(scheduler):
            if not name.startswith("_") and callable(getattr(scheduler, name)):
                setattr(self, name, self._timed(getattr(scheduler, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def _timed(self, method: Any) -> Any:
        @wraps(method)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def _watched(engine: Saturated) -> _Watched:
    watched = _Watched(engine.loop.scheduler)
    engine.loop.scheduler = cast(Scheduler, watched)
    return watched


def _null(scores: Scores, max_batch: int) -> NullBackend:
    """A place for every image, and the smallest pictures there are."""
    return NullBackend(scores, classes=2, size=1, capacity=len(scores), max_batch=max_batch)


def _nothing(images: int) -> NDArray[np.uint8]:
    return np.zeros((images, 1, 1, 3), dtype=np.uint8)
