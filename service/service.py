"""What a running service consists of; built once, and reached by the routes through the app's state."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from msmlp.model.backends.select import Selection, select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.weights import Calibration, Weights, describe, load_calibration, load_weights, model_version
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.core import SHADOW_SLOTS
from msmlp.service.engine.process.supervisor import ProcessWorker
from msmlp.service.engine.transport import InlineWorker, ThreadWorker, Worker
from msmlp.service.errors import DrainingError, OverloadedError
from msmlp.service.frontends.layout import Layout, layout_here
from msmlp.service.frontends.peers import Peers
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.settings import Settings
from msmlp.service.telemetry.metrics import Metrics
from msmlp.service.telemetry.record import RequestRecords, Statistics

if TYPE_CHECKING:
    from msmlp.service.telemetry.traces import Traces  # it knows OpenTelemetry, which is an extra


@dataclass(frozen=True)
class Facts:
    """What does not change while a service runs: the model's name and version, class names, GFLOPs to each exit [K]."""

    model: dict[str, str]
    classes: tuple[str, ...]
    gflops: list[float]

    @cached_property
    def spent(self) -> list[float]:
        """GFLOPs of an image that left at each exit, [K + 1]; none at exit 0."""
        return [0.0, *self.gflops]


class ByteBudget:
    """Limits the bytes that all request bodies hold together; `shed` is called when a request would exceed it."""

    def __init__(self, limit: int, shed: Callable[[], None]) -> None:
        self.limit, self._shed = limit, shed
        self._held = 0

    def take(self, size: int) -> None:
        """Count `size` bytes until they are given back; OverloadedError when there is no room for them."""
        if self._held + size > self.limit:
            self._shed()
            raise OverloadedError(f"request bodies already take {self._held} of {self.limit} bytes")
        self._held += size

    def give_back(self, size: int) -> None:
        self._held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)


@dataclass
class Service:
    """`peers` are the other front ends, None where there is only one; `layout` is what `build_service` chose."""

    settings: Settings
    weights: Weights
    calibration: Calibration
    operating_points: OperatingPoints
    metrics: Metrics
    engine: AsyncEngine
    decoders: ThreadPoolExecutor
    statistics: Statistics
    records: RequestRecords
    layout: Layout
    peers: Peers | None = None
    traces: "Traces | None" = None
    draining: bool = field(default=False)

    @cached_property
    def facts(self) -> Facts:
        manifest = self.weights.manifest
        name = {"name": manifest.name, "version": model_version(self.weights, self.calibration)}
        return Facts(name, manifest.classes, manifest.gflops_cumulative)

    @cached_property
    def body_budget(self) -> ByteBudget:
        """Over HTTP and gRPC."""
        return ByteBudget(self.settings.max_bodies_bytes, self.metrics.shed.labels("memory").inc)

    def check_ready(self) -> None:
        """Raise DrainingError, StartingError or EngineDownError when requests cannot be served here now."""
        if self.draining:
            raise DrainingError("the service is shutting down")
        self.engine.check()

    def check_any_ready(self) -> None:
        """The same for the whole service: it is ready if one front end is."""
        if self.draining or self.peers is None or not self.peers.any_ready:
            self.check_ready()

    def own_images_per_second(self) -> float:
        return self.engine.throughput.per_second(time.monotonic())

    def images_per_second(self) -> float:
        """Of the whole service, over the last seconds."""
        return self.own_images_per_second() + (self.peers.rate if self.peers else 0.0)

    async def metrics_text(self) -> bytes:
        """The whole service's, in Prometheus' text format."""
        text: bytes = await self.peers.ask("metrics") if self.peers else self.metrics.render()
        return text

    async def counts(self) -> tuple[Statistics, int]:
        """The whole service's statistics, and how many batches the first stage has run."""
        if self.peers is None:
            return self.statistics, self.metrics.executions
        counts: tuple[Statistics, int] = await self.peers.ask("statistics")
        return counts

    @property
    def max_images(self) -> int:
        """The most images of one request: at most the engine's permits, once it is ready."""
        return min(self.settings.max_images, self.engine.admission.permits or self.settings.max_images)

    def describe(self) -> dict[str, Any]:
        """The document of `GET /model`: that of `msmlp info`, less what concerns the machine that trained it."""
        document = describe(self.weights, self.calibration)
        private = ("command", "git_commit", "torch")
        document["training"] = {k: v for k, v in document["training"].items() if k not in private}
        return {**document, "default_policy": self.operating_points.default}


def build_service(settings: Settings, select: Callable[..., Selection] = select_backend, *, share: int = 1) -> Service:
    """Load and check the weights folder and put a service together; the engine starts with the app.

    `select` chooses the backend; `msmlp bench http` gives one that computes nothing. `share` engines like this one
    divide the machine.

    Raises:
        CallerError: weights or settings that do not fit.
    """
    weights = load_weights(settings.weights)
    calibration = load_calibration(weights)
    manifest = weights.manifest
    stages = len(manifest.cascade.stages)
    name, version = manifest.name, model_version(weights, calibration)
    metrics = Metrics(manifest.gflops_cumulative, name, version)
    points = OperatingPoints(calibration, manifest.gflops_cumulative, settings.policy)

    # Built on the engine's thread: torch's thread pool and a GPU's context belong to it.
    wanted = BackendSettings(
        settings.device,
        settings.dtype,
        settings.provider,
        capacity=settings.capacity,
        reserve=SHADOW_SLOTS if settings.shadow else 0,
        max_batch=settings.max_batch,
        share=share,
    )
    selected = select(weights, calibration, wanted, settings.backend)
    layout = layout_here(settings, selected.name, selected.device, weights)
    start: Callable[..., Worker] = InlineWorker if layout.engine == "inline" else ThreadWorker
    if layout.engine == "process":
        size, ring_images = manifest.cascade.image_size, 2 * settings.max_images
        start = partial(ProcessWorker, stages=stages, size=size, ring_images=ring_images)
    engine = AsyncEngine(
        selected.build,
        permits=settings.capacity,
        max_wait_seconds=settings.max_wait_ms / 1e3,
        costs=points.costs(),
        brownout_seconds=settings.brownout_ms / 1e3,
        shadow_every=round(1 / settings.shadow) if settings.shadow else 0,
        worker=start,
    )
    engine.watch(metrics.observe)
    metrics.watch(engine, points)
    worker = engine.worker
    if isinstance(worker, ProcessWorker):
        metrics.watch_process(lambda: worker.pid)
    decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="msmlp-decode")
    statistics = Statistics()
    records = RequestRecords(metrics.ended, statistics.ended)
    return Service(settings, weights, calibration, points, metrics, engine, decoders, statistics, records, layout)
