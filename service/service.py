"""What a running service consists of; built once, and reached by the routes through the app's state."""

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import Selection, select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.errors import MsmlpError, OptionError
from msmlp.model.weights import Calibration, Weights, describe, load_calibration, load_weights, model_version
from msmlp.service.calls import Calls
from msmlp.service.decoding.decoders import Decoders
from msmlp.service.engine.async_engine import DOWN, AsyncEngine
from msmlp.service.engine.core import SHADOW_SLOTS, BackendFactory
from msmlp.service.engine.process.group import EngineGroup, ProcessWorker
from msmlp.service.engine.process.host import EngineHost, EngineHosts
from msmlp.service.engine.process.remote import RemoteWorker
from msmlp.service.engine.transport import InlineWorker, Send, ThreadWorker, Worker
from msmlp.service.engine.turns import Turns
from msmlp.service.errors import DrainingError, EngineDownError, OverloadedError, ReloadFailedError
from msmlp.service.frontends.board import Others
from msmlp.service.frontends.layout import Layout, layout_here
from msmlp.service.keys import Keys
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.parsing import Parser
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
        self.make_room: Callable[[], bool] = bool
        """Ends a body that has stalled, whose bytes come back at once; False if there is none."""

    @property
    def free(self) -> int:
        return self.limit - self._held

    def take(self, size: int) -> None:
        """Count `size` bytes until they are given back; OverloadedError when there is no room for them."""
        if size > self.free and (refusal := self.refusal(size)):
            raise refusal
        self._held += size

    def refusal(self, size: int) -> OverloadedError | None:
        """Why there is no room for `size` bytes, which is counted; None if there is, once stalled bodies are ended."""
        while size > self.free:
            if size > self.limit or not self.make_room():
                self._shed()
                if size > self.limit:
                    text = f"the body has {size} bytes; the limit for all bodies together is {self.limit}"
                    return OverloadedError(f"{text} (--max-bodies-bytes)")
                return OverloadedError(f"request bodies already take {self._held} of {self.limit} bytes")
        return None

    def give_back(self, size: int) -> None:
        self._held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)


RESERVED_FILES = 64
"""Open files that are not connections."""

RELOAD_SECONDS = 900.0
"""Longer than the supervisor takes to say how a reload ended."""

STILL_SECONDS = 5.0
"""An event loop that has not turned for this long may be about to do so again: those who watch should know."""


@dataclass
class Service:
    """`others` are the front ends of its supervisor, None without one; `layout` is what `build_service` chose."""

    settings: Settings
    weights: Weights
    calibration: Calibration
    operating_points: OperatingPoints
    metrics: Metrics
    engine: AsyncEngine
    decoders: Decoders
    statistics: Statistics
    records: RequestRecords
    layout: Layout
    others: Others | None = None
    traces: "Traces | None" = None
    draining: bool = field(default=False)
    turns: Turns = field(default_factory=Turns)
    calls: Calls = field(default_factory=Calls)

    @cached_property
    def facts(self) -> Facts:
        manifest = self.weights.manifest
        name = {"name": manifest.name, "version": model_version(self.weights, self.calibration)}
        return Facts(name, manifest.classes, manifest.gflops_cumulative)

    @cached_property
    def keys(self) -> Keys:
        """Set from outside in front ends, which share the supervisor's."""
        return Keys(self.settings)

    @cached_property
    def connections(self) -> int:
        """How many this process may have open, over HTTP and, if it serves gRPC, as many again: `--max-connections`,
        unless the system allows fewer files.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        kinds = 1 if self.settings.grpc_port is None else 2
        most = self.settings.max_connections
        return most if files == resource.RLIM_INFINITY else max(1, min(most, (files - RESERVED_FILES) // kinds))

    @cached_property
    def body_budget(self) -> ByteBudget:
        """Over HTTP and gRPC."""
        return ByteBudget(self.settings.max_bodies_bytes, self.metrics.shed.labels("memory").inc)

    @cached_property
    def parser(self) -> Parser:
        """Over HTTP and gRPC."""
        return Parser(self.settings.max_wait_ms / 1e3, self.metrics.shed.labels("door").inc)

    @property
    def live(self) -> bool:
        """Whether this process should keep running."""
        return not self.engine.down and self.engine.late <= STILL_SECONDS

    def check_live(self) -> None:
        """Raise EngineDownError when it should not."""
        if self.engine.down:
            raise EngineDownError(DOWN)
        if not self.live:
            raise EngineDownError(f"the event loop stood still for {self.engine.late:.0f} s")

    def check_ready(self) -> None:
        """Raise StartingError or EngineDownError when requests cannot be served here now."""
        self.engine.check()

    def check_any_ready(self) -> None:
        """The same for the whole service, which is ready if one front end is; DrainingError once it is to end, while
        requests are still served.
        """
        if self.draining:
            raise DrainingError("the service is shutting down")
        if self.others is None or not self.others.any_ready:
            self.check_ready()

    def own_images_per_second(self) -> float:
        return self.engine.throughput.per_second(time.monotonic())

    def images_per_second(self) -> float:
        """Of the whole service, over the last seconds."""
        return self.own_images_per_second() + (self.others.rate if self.others else 0.0)

    async def metrics_text(self) -> bytes:
        """The whole service's, in Prometheus' text format."""
        text: bytes = await self.others.ask("metrics") if self.others else self.metrics.render()
        return text

    async def counts(self) -> tuple[Statistics, int]:
        """The whole service's statistics, and how many batches the first stage has run."""
        if self.others is None:
            return self.statistics, self.metrics.executions
        counts: tuple[Statistics, int] = await self.others.ask("statistics")
        return counts

    async def reload(self) -> dict[str, Any]:
        """Have the weights folder loaded anew, by the supervisor → what is served then, and what was.

        Raises:
            MsmlpError: what was served goes on.
        """
        if self.others is None:
            raise ReloadFailedError("this process has no supervisor to load weights anew")
        answer = await self.others.ask("reload", RELOAD_SECONDS)
        if isinstance(answer, MsmlpError):
            folder, text = self.settings.weights, str(answer)
            if folder.name:  # not "."; the log has all of the path
                text = text.replace(str(folder), folder.name)
            raise type(answer)(text)
        document: dict[str, Any] = answer
        return document

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


@dataclass(frozen=True)
class EnginePlan:
    """Where the stages run, and on what: a selected backend per device, and the GPU that its process may see."""

    layout: Layout
    selected: list[tuple[Selection, str | None]]
    options: dict[str, Any]
    """As engines take them: `permits`, `shadow_every`."""
    shape: dict[str, Any]
    """`stages`, and the `shape` of an image's pixels."""

    def hosts(self) -> EngineHosts:
        """The engines' processes, not yet started."""
        made = [EngineHost(each.build, gpu=gpu, **self.options, **self.shape) for each, gpu in self.selected]
        return EngineHosts(made)


def _shape(weights: Weights) -> dict[str, Any]:
    """What crosses to an engine's process depends on it."""
    shape = weights.manifest.cascade.shape
    return {"stages": shape.stages, "shape": shape.image}


def plan_engine(
    settings: Settings,
    weights: Weights,
    calibration: Calibration,
    select: Callable[..., Selection] = select_backend,
    *,
    share: int = 1,
) -> EnginePlan:
    """Choose the backend of every device, and where it runs. `capacity` is shared by the devices.

    Raises:
        CallerError: what `select` raises; OptionError for a GPU that this process may not use.
    """
    devices = settings.devices.split(",") if settings.devices else [settings.device]
    if settings.devices and settings.engine not in ("auto", "process"):
        raise OptionError("devices", f"goes with --engine process or auto, not --engine {settings.engine}")
    permits = settings.capacity and max(1, settings.capacity // len(devices))

    @cache
    def selected(kind: str) -> Selection:
        # Built where it runs: torch's thread pool and a GPU's context belong to that thread.
        wanted = BackendSettings(
            kind,
            settings.dtype,
            settings.provider,
            capacity=permits,
            reserve=SHADOW_SLOTS if settings.shadow else 0,
            max_batch=settings.max_batch,
            share=share,
        )
        return select(weights, calibration, wanted, settings.backend)

    found = [(selected("cuda" if each.isdecimal() else each), _gpu(each)) for each in devices]
    first = found[0][0]
    options = {"permits": permits, "shadow_every": round(1 / settings.shadow) if settings.shadow else 0}
    return EnginePlan(
        layout_here(settings, first.name, first.device, weights, calibration), found, options, _shape(weights)
    )


def _gpu(device: str) -> str | None:
    """A number of --devices as CUDA names that GPU, among those that this process may use."""
    if not device.isdecimal():
        return None
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not allowed:
        return device
    names = allowed.split(",")
    if int(device) >= len(names):
        expected = f"expected 0 to {len(names) - 1}, as CUDA_VISIBLE_DEVICES is {allowed}"
        raise OptionError("devices", f"there is no GPU {device}; {expected}")
    return names[int(device)]


def build_service(
    settings: Settings,
    select: Callable[..., Selection] = select_backend,
    *,
    share: int = 1,
    engines: Sequence[str] | None = None,
) -> Service:
    """Load and check the weights folder and put a service together; the engine starts with the app.

    `select` chooses the backend; `msmlp bench http` gives one that computes nothing. `engines` are the addresses of
    engines that other processes host (`EngineHost.address`); without them the service has its own, one of `share` like
    it that divide the machine.

    Raises:
        CallerError: weights or settings that do not fit.
    """
    weights = load_weights(settings.weights)
    calibration = load_calibration(weights)
    manifest = weights.manifest
    name, version = manifest.name, model_version(weights, calibration)
    metrics = Metrics(manifest.gflops_cumulative, name, version)
    points = OperatingPoints(calibration, manifest.gflops_cumulative, settings.policy)
    connect = partial(RemoteWorker, **_shape(weights), ring_images=2 * settings.max_images)
    build: BackendFactory = _elsewhere
    options: dict[str, Any] = {}
    start: Callable[..., Worker]
    if engines is not None:
        layout = Layout(1, "process", "another process has the engine")
        start = partial(_beside, partial(EngineGroup, [partial(connect, address) for address in engines]))
    else:
        plan = plan_engine(settings, weights, calibration, select, share=share)
        layout, build, options = plan.layout, plan.selected[0][0].build, plan.options
        start = InlineWorker if layout.engine == "inline" else ThreadWorker
        if layout.engine == "process":
            start = partial(_beside, partial(ProcessWorker, plan.hosts(), connect))
    engine = AsyncEngine(
        build,
        **options,
        max_wait_seconds=settings.max_wait_ms / 1e3,
        costs=points.costs(),
        brownout_seconds=settings.brownout_ms / 1e3,
        worker=start,
    )
    engine.watch(metrics.observe)
    metrics.watch(engine, points)
    if isinstance(engine.worker, EngineGroup):
        metrics.watch_engines(engine.worker)
    decoders = Decoders(
        settings.decode_threads,
        max_pixels=settings.max_pixels,
        max_request_pixels=settings.max_request_pixels,
        observe=metrics.decoded,
    )
    engine.decode_backlog = metrics.decode_backlog = decoders.backlog
    engine.decode_busy = decoders.busy
    statistics = Statistics()
    records = RequestRecords(metrics.ended, statistics.ended)
    return Service(settings, weights, calibration, points, metrics, engine, decoders, statistics, records, layout)


def _elsewhere() -> StageBackend:
    raise RuntimeError("another process builds this service's backend")


def _beside(make: Callable[[Send], Worker], _build: BackendFactory, send: Send, **_: Any) -> Worker:
    """The worker of an AsyncEngine whose backend another process builds: what it is built with is known there."""
    return make(send)
