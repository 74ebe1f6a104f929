"""`msmlp bench engine`: how near the engine comes to what its device can do, and what exits are worth, in one run."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.backends.protocol import warm_up
from model.backends.torch import TorchBackend
from model.errors import DeviceError, OptionError
from model.exits import exit_of
from model.offline import run_every_exit
from model.weights import Calibration, OperatingPoint, Weights, load_calibration, load_weights
from msmlp.bench.images import pick_images
from msmlp.bench.load import offered_load
from msmlp.bench.stages import PlainStages, StageSamples, backend_times
from msmlp.bench.strategies import ReplayBackend, Saturated, full, masked, shrinking
from service.settings import Settings
from service.state import build_service

LOADS = (0.5, 0.8, 0.95, 1.5)
SAMPLES = 20
"""Runs of every stage and bucket at least, spread over the rounds."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; `load_seconds` 0 leaves the offered loads out."""

    weights: Path
    data: Path | None = None
    images: int = 1024
    rounds: int = 5
    max_batch: int = 64
    policy: str = "balanced"
    device: str = "auto"
    dtype: str = "auto"
    load_seconds: float = 5.0


def bench_engine(options: BenchOptions, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Measure; the document of the contract's section 2, and what it was made from.

    Raises:
        CallerError: weights, data, policy or device that do not fit.
    """
    weights = load_weights(options.weights)
    calibration = load_calibration(weights)
    point = _point(calibration, options.policy)
    images = pick_images(options.data, options.images, weights.manifest.cascade.image_size)
    saturation, scores = _saturation(options, weights, calibration, point, images, progress)
    document = {
        "weights": str(options.weights),
        "images": len(images),
        "rounds": options.rounds,
        "policy": point.name,
        "max_batch": options.max_batch,
        **saturation,
        "host_us_per_image": _host_us(scores, point, options.max_batch),
        "load": [],
    }
    if options.load_seconds:
        capacity = saturation["engine_images_per_second"]
        document["load"] = asyncio.run(_loads(options, images, capacity, progress))
    return document


def _point(calibration: Calibration, name: str) -> OperatingPoint:
    points = {point.name: point for point in calibration.points}
    if name not in points:
        raise OptionError("--policy", f"{name!r} is no operating point; there are {', '.join(points)}")
    return points[name]


def _saturation(
    options: BenchOptions,
    weights: Weights,
    calibration: Calibration,
    point: OperatingPoint,
    images: NDArray[np.uint8],
    progress: Progress,
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    backend = TorchBackend(
        weights,
        temperatures=calibration.file.temperatures,
        exit_policy=calibration.file.exit_policy,
        device=options.device,
        dtype=options.dtype,
        capacity=len(images),
        max_batch=options.max_batch,
    )
    warm_up(backend)
    plain = PlainStages(weights, backend)
    bound = StageSamples(backend.buckets, images, lambda pixels: backend_times(backend, pixels))
    modules = StageSamples(backend.buckets, images, plain.times)
    engine, thresholds = Saturated(backend), np.array(point.thresholds)
    shut = np.ones(len(thresholds))
    runs: dict[str, Callable[[], object]] = {
        "engine": lambda: engine.run(images, thresholds),
        "full": lambda: full(backend, images),
        "forced": lambda: engine.run(images, shut),
        "masked": lambda: masked(backend, images, thresholds),
        "shrinking": lambda: shrinking(backend, images, thresholds),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        for _ in range(-(-SAMPLES // options.rounds)):
            bound.sample()
            modules.sample()
        for name, run in runs.items():
            seconds[name].append(_timed(run))
    scores = run_every_exit(backend, images).scores
    exits = exit_of(scores, thresholds)
    reach = np.array([(exits > k).mean() for k in range(backend.stages)])
    speed = {name: len(images) / statistics.median(times) for name, times in seconds.items()}
    bound_speed = bound.images_per_second(reach)
    document = {
        "device": backend.device,
        "exit_share": (np.bincount(exits - 1, minlength=backend.stages) / len(exits)).round(4).tolist(),
        "plain_images_per_second": modules.images_per_second(reach),
        "bound_images_per_second": bound_speed,
        "engine_images_per_second": speed["engine"],
        "efficiency": speed["engine"] / bound_speed,
        "baselines": {name: speed[name] for name in ("full", "forced", "masked", "shrinking")},
        "engine_over": {
            name: statistics.median(b / e for b, e in zip(seconds[name], seconds["engine"], strict=True))
            for name in ("full", "masked", "shrinking")
        },
        "stage_ms": bound.document(),
    }
    return document, scores


def _host_us(scores: NDArray[np.float32], point: OperatingPoint, max_batch: int) -> float:
    """Microseconds of scheduler and loop an image, all its stages together, with no device at all."""
    engine, thresholds = Saturated(ReplayBackend(scores, max_batch)), np.array(point.thresholds)
    nothing = np.zeros((len(scores), 1, 1, 3), dtype=np.uint8)
    times = [_timed(lambda: engine.run(nothing, thresholds)) for _ in range(SAMPLES)]
    return 1e6 * statistics.median(times) / len(scores)


async def _loads(
    options: BenchOptions, images: NDArray[np.uint8], capacity: float, progress: Progress
) -> list[dict[str, Any]]:
    """Every offered load on a service of its own, so that none begins with another's backlog."""
    rows = []
    for seed, load in enumerate(LOADS):
        progress(f"offering {100 * load:.0f} % of {capacity:.0f} images/s for {options.load_seconds:.0f} s")
        settings = Settings(
            weights=options.weights, device=options.device, dtype=options.dtype, max_batch=options.max_batch
        )
        service = build_service(settings)
        service.engine.start()
        while not service.engine.up:
            if service.engine.down:
                raise DeviceError("the engine could not be started")
            await asyncio.sleep(0.1)
        row = await offered_load(service, images, load * capacity, options.load_seconds, seed)
        rows.append({"load": load, **row})
        await service.engine.stop()
        service.decoders.shutdown()
    return rows


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
