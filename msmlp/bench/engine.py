"""`msmlp bench engine`: how near the engine comes to what its device can do, and what exits are worth, in one run."""

import asyncio
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.images import pick_images
from msmlp.bench.load import named_points, offered_loads
from msmlp.bench.null_server import NullBackend
from msmlp.bench.saturation import Saturated, Saturation, plain_stages
from msmlp.bench.stages import Floats, Pixels, reach_of
from msmlp.model.backends.protocol import buckets_up_to, warm_up
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.exits.rule import exit_of
from msmlp.model.offline import dataset_for, run_every_exit
from msmlp.model.text import percent, shares
from msmlp.model.weights import Calibration, Weights, load_calibration, load_weights
from msmlp.service.engine.latency import LatencyModel
from msmlp.service.engine.messages import ExitParameters
from msmlp.service.engine.scheduler import Scheduler
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.options import NO_OPTIONS
from msmlp.service.settings import Settings

DESCRIBED = 64
"""The cap that the document's own fields describe, where it is among those measured."""
SAMPLES = 20
"""Runs of every stage and bucket at least, spread over the rounds."""
HOST_RUNS = 20
SCHEDULER_BATCHES = 1, 256, 1024
SCHEDULER_REQUEST = 64
"""Images per request while the scheduler alone is timed."""
Progress = Callable[[str], None]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; `caps` are largest batches, `load_seconds` 0 leaves the offered loads out."""

    settings: Settings
    data: Path | None = None
    images: int = 2048
    rounds: int = 5
    caps: tuple[int, ...] = (16, 64, 256)
    load_seconds: float = 10.0
    loads: tuple[float, ...] = (0.5, 0.8, 0.95, 1.5)

    @property
    def cap(self) -> int:
        return DESCRIBED if DESCRIBED in self.caps else self.caps[0]


def bench_engine(options: BenchOptions, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Measure, and return the `--json` document.

    Raises:
        CallerError: weights, data, policy or device that do not fit.
    """
    settings = options.settings.model_copy(update={"max_batch": options.cap})
    weights = load_weights(settings.weights)
    calibration = load_calibration(weights)
    point = OperatingPoints(calibration, weights.manifest.gflops_cumulative, settings.policy).resolve(NO_OPTIONS)
    data = None if options.data is None else dataset_for(weights, options.data)
    images = pick_images(data, options.images, weights.manifest.views)
    thresholds = point.parameters.thresholds
    caps = _saturate(options, weights, calibration, images, thresholds, progress)
    described = caps[options.cap]
    scores = run_every_exit(described.backend, images).scores
    exits, stages = exit_of(scores, thresholds), described.backend.stages
    documents = {cap: saturation.document(reach_of(exits, stages)) for cap, saturation in caps.items()}
    document = {
        "weights": str(settings.weights),
        "data": None if options.data is None else options.data.name,
        "images": len(images),
        "rounds": options.rounds,
        "policy": point.name,
        **{name: getattr(described.backend, name) for name in ("device", "dtype", "in_flight")},
        "backend": described.backend.name,
        **_of_torch(),
        "machine": platform.machine(),
        "exit_share": [round(float((exits == exit).mean()), 4) for exit in range(1, stages + 1)],
        **documents[options.cap],
        "caps": list(documents.values()),
    }
    progress("host")
    document["host_us_per_image"] = host_us_per_image(scores, thresholds, options.cap)
    document["host"] = {
        "scheduler_us_per_image_and_stage": {
            str(batch): scheduler_us(scores, thresholds, batch) for batch in SCHEDULER_BATCHES
        }
    }
    document["load_capacity_images_per_second"] = capacity = _capacity(described, calibration, scores, document)
    document["load"] = []
    if options.load_seconds:
        loads, seconds = options.loads, options.load_seconds
        document["load"] = asyncio.run(offered_loads(settings, images, capacity, loads, seconds, progress))
    return document


def _of_torch() -> dict[str, Any]:
    """Without it imported cascades can be measured, which do not need it."""
    try:
        import torch
    except ModuleNotFoundError:
        return {"torch": None, "threads": None}
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _saturate(
    options: BenchOptions,
    weights: Weights,
    calibration: Calibration,
    images: Pixels,
    thresholds: Floats,
    progress: Progress,
) -> dict[int, Saturation]:
    caps, rng, given = {}, np.random.default_rng(0), options.settings
    for cap in options.caps:
        progress(f"warm-up, batches up to {cap}")
        wanted = BackendSettings(given.device, given.dtype, given.provider, capacity=len(images), max_batch=cap)
        backend = select_backend(weights, calibration, wanted, given.backend).build()
        caps[cap] = Saturation(backend, plain_stages(weights, calibration, backend), images, thresholds)
    for number in range(options.rounds):
        for cap, saturation in caps.items():
            progress(f"round {number + 1} of {options.rounds}, batches up to {cap}")
            saturation.round(-(-SAMPLES // options.rounds), rng)
    return caps


def _capacity(described: Saturation, calibration: Calibration, scores: Scores, document: dict[str, Any]) -> float:
    """The images/s that the engine would reach if it were saturated with the mix of operating points in the load."""
    mix = [exit_of(scores, np.array(point.thresholds)) for point in named_points(calibration.points)]
    reach = [reach_of(exits, scores.shape[1]) for exits in mix]
    bound = described.costs().images_per_second(np.mean(reach, axis=0))
    return float(document["efficiency"] * bound)


def host_us_per_image(scores: Scores, thresholds: Floats, max_batch: int) -> float:
    """Microseconds of engine core per image, over all its stages; `scores` [N, K] say where images exit."""
    backend = NullBackend(scores, classes=2, image_shape=(1, 1, 3), capacity=len(scores), max_batch=max_batch)
    engine, times = Saturated(backend, warm_up(backend)), []
    pixels = np.zeros((len(scores), 1, 1, 3), dtype=np.uint8)
    for _ in range(HOST_RUNS):
        start = time.perf_counter()
        engine.run(pixels, thresholds)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times) / len(scores)


def scheduler_us(scores: Scores, thresholds: Floats, batch: int) -> float:
    """Microseconds of scheduler per image and stage, in batches of up to `batch`: every call that the core makes."""
    scores = scores[np.arange(4 * batch) % len(scores)]
    (images, stages), buckets = scores.shape, buckets_up_to(batch)
    scheduler = Scheduler(images, stages, LatencyModel(buckets, np.ones((stages, len(buckets)))))
    slots, parameters, times = np.arange(images), ExitParameters(thresholds, 1, stages), []
    for _ in range(HOST_RUNS):
        ran, start = 0, time.perf_counter()
        for request, first in enumerate(range(0, images, SCHEDULER_REQUEST)):
            scheduler.add(slots[first : first + SCHEDULER_REQUEST], request, parameters, 0.0)
        while not scheduler.idle():
            scheduler.overdue(0.0, 0.0)
            chosen = scheduler.next_batch(0.0)
            assert chosen is not None
            scheduler.overdue(0.0, chosen.seconds)
            scheduler.settle(chosen, scores[chosen.slots, chosen.stage], 0.0)
            ran += len(chosen.slots)
        times.append((time.perf_counter() - start) / ran)
    return 1e6 * statistics.median(times)


def engine_lines(result: dict[str, Any]) -> Iterator[str]:
    exits = shares(result["exit_share"])
    yield f"{result['images']} images on {result['device']}; {result['policy']} sends {exits} to each exit"
    for cap in result["caps"]:
        speeds = {name: cap[f"{name}_images_per_second"] for name in ("bound", "engine")} | cap["baselines"]
        said = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
        yield f"batches up to {cap['max_batch']}, images/s: {said}; engine / bound {cap['efficiency']:.3f}"
    yield f"host: {result['host_us_per_image']:.1f} us per image"
    for row in result["load"]:
        latency = "-" if row["p50_ms"] is None else " / ".join(f"{row[f'p{p}_ms']:.1f}" for p in (50, 95, 99))
        yield (
            f"load {percent(row['load'], 0):>5}: {row['achieved']:7.0f} images/s, p50 / p95 / p99 {latency} ms, "
            f"degraded {percent(row['degraded'], 0)}, shed {percent(row['shed'], 0)}"
        )
