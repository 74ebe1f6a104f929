"""`msmlp bench engine`: how near the engine comes to what its device can do, and what exits are worth, in one run."""

import asyncio
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msmlp.bench.costs import Floats, StageCosts, reach_of
from msmlp.bench.host import host_costs, loop_us_per_image
from msmlp.bench.images import pick_images
from msmlp.bench.loads import LoadOptions, offered_loads
from msmlp.bench.offer import named_point, named_points
from msmlp.bench.saturation import Saturation
from msmlp.bench.stages import PlainStages
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.exits import exit_of
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import Calibration, OperatingPoint, Weights, load_calibration, load_weights

CAPS = (16, 64, 256)
DESCRIBED = 64
"""The cap that the document's own fields describe, where it is among those measured."""
SAMPLES = 20
"""Runs of every stage and bucket at least, spread over the rounds."""
OTHER_STEPS = 2
Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; `caps` are largest batches, `load_seconds` 0 leaves the offered loads out."""

    weights: Path
    data: Path | None = None
    images: int = 2048
    rounds: int = 5
    caps: tuple[int, ...] = CAPS
    policy: str = "balanced"
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"
    load_seconds: float = 10.0
    loads: tuple[float, ...] = (0.5, 0.8, 0.95, 1.5)
    backend: str = "torch"

    @property
    def cap(self) -> int:
        """The described one."""
        return DESCRIBED if DESCRIBED in self.caps else self.caps[0]

    @property
    def steps(self) -> int:
        """How often progress is told."""
        return len(self.caps) * (self.rounds + 1) + OTHER_STEPS + (len(self.loads) if self.load_seconds else 0)


def bench_engine(options: BenchOptions, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Measure; the document of the contract's section 2, and what it was made from.

    Raises:
        CallerError: weights, data, policy or device that do not fit.
    """
    weights = load_weights(options.weights)
    calibration = load_calibration(weights)
    point = named_point(calibration.points, options.policy)
    images = pick_images(options.data, options.images, weights.manifest.cascade.image_size)
    bench = _Bench(options, weights, calibration, point, images)
    bench.saturate(progress)
    document = bench.document()
    progress("host")
    thresholds = np.array(point.thresholds)
    document["host_us_per_image"] = loop_us_per_image(bench.scores, thresholds, options.cap)
    document["host"] = host_costs(bench.scores, thresholds)
    document["load"] = []
    if options.load_seconds:
        document |= asyncio.run(offered_loads(bench.load_options(document), images, progress))
    return document


class _Bench:
    """Saturation at every cap, and the scores of every image, from which exits are known for any thresholds."""

    def __init__(
        self,
        options: BenchOptions,
        weights: Weights,
        calibration: Calibration,
        point: OperatingPoint,
        images: NDArray[np.uint8],
    ) -> None:
        self._options, self._weights, self._calibration = options, weights, calibration
        self._point, self._images = point, images
        self._caps: dict[int, Saturation] = {}

    def saturate(self, progress: Progress) -> None:
        """All rounds, cap after cap in each."""
        options, rng = self._options, np.random.default_rng(0)
        for cap in options.caps:
            progress(f"warm-up, batches up to {cap}")
            backend = self._backend(cap)
            plain = PlainStages(self._weights, backend)
            self._caps[cap] = Saturation(backend, plain, self._images, np.array(self._point.thresholds))
            if cap == options.cap:
                self._device = {
                    "backend": backend.name,
                    "device": backend.device,
                    "dtype": backend.dtype,
                    "in_flight": backend.in_flight,
                }
                self.scores = run_every_exit(backend, self._images).scores
        for number in range(options.rounds):
            for cap, saturation in self._caps.items():
                progress(f"round {number + 1} of {options.rounds}, batches up to {cap}")
                saturation.round(-(-SAMPLES // options.rounds), rng)

    def document(self) -> dict[str, Any]:
        """Everything about saturation."""
        options, exits = self._options, self._exits(self._point)
        caps = {cap: saturation.document(self._reach(self._point)) for cap, saturation in self._caps.items()}
        return {
            "weights": str(options.weights),
            "data": None if options.data is None else options.data.name,
            "images": len(self._images),
            "rounds": options.rounds,
            "policy": self._point.name,
            **self._device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "exit_share": (np.bincount(exits - 1, minlength=self.scores.shape[1]) / len(exits)).round(4).tolist(),
            **caps[options.cap],
            "caps": list(caps.values()),
        }

    def load_options(self, document: dict[str, Any]) -> LoadOptions:
        """Loads relative to the engine's images/s, were it saturated with the mix of thresholds that is offered."""
        options, costs = self._options, self._costs
        points = named_points(self._calibration.points)
        mix = np.mean([self._reach(point) for point in points], axis=0)
        ratio = costs.images_per_second(mix) / costs.images_per_second(self._reach(self._point))
        return LoadOptions(
            weights=options.weights,
            backend=options.backend,
            device=options.device,
            dtype=options.dtype,
            engine=options.engine,
            max_batch=options.cap,
            capacity=document["engine_images_per_second"] * ratio,
            seconds=options.load_seconds,
            loads=options.loads,
            costs=costs,
        )

    @property
    def _costs(self) -> StageCosts:
        return self._caps[self._options.cap].costs()

    def _exits(self, point: OperatingPoint) -> NDArray[np.int64]:
        return exit_of(self.scores, np.array(point.thresholds))

    def _reach(self, point: OperatingPoint) -> Floats:
        return reach_of(self._exits(point), self.scores.shape[1])

    def _backend(self, cap: int) -> StageBackend:
        options = self._options
        settings = BackendSettings(options.device, options.dtype, capacity=len(self._images), max_batch=cap)
        return select_backend(self._weights, self._calibration, settings, options.backend).build()
