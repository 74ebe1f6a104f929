"""Everything a running service holds; built once, handed to the routes through the app's state."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from fastapi import Request

from msmlp.model.backends.select import Selection, select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.weights import Calibration, Weights, describe, load_calibration, load_weights, model_version
from msmlp.service.answers import Facts
from msmlp.service.byte_budget import Memory
from msmlp.service.engine.async_engine import Engine
from msmlp.service.engine.process.supervisor import ProcessWorker
from msmlp.service.engine.transport import SHADOW_SLOTS, Handle, Worker
from msmlp.service.errors import DrainingError, OverloadedError
from msmlp.service.operating_points import Policy
from msmlp.service.settings import Settings
from msmlp.service.telemetry.metrics import Metrics
from msmlp.service.telemetry.record import Accounts
from msmlp.service.telemetry.statistics import Statistics

if TYPE_CHECKING:
    from msmlp.service.telemetry.traces import Traces  # it knows OpenTelemetry, which is an extra


@dataclass
class Service:
    """Settings, the model's plain facts, and the engine."""

    settings: Settings
    weights: Weights
    calibration: Calibration
    policy: Policy
    metrics: Metrics
    engine: Engine
    decoders: ThreadPoolExecutor
    statistics: Statistics
    accounts: Accounts
    traces: "Traces | None" = None
    draining: bool = field(default=False)

    @cached_property
    def facts(self) -> Facts:
        """What answers say of the model."""
        manifest = self.weights.manifest
        name = {"name": manifest.name, "version": model_version(self.weights, self.calibration)}
        return Facts(name, manifest.classes, manifest.gflops_cumulative)

    @cached_property
    def memory(self) -> Memory:
        """What the bodies of all requests hold."""
        return Memory(self.settings.max_bodies_bytes, self.metrics.shed.labels("memory").inc)

    def check_ready(self) -> None:
        """Raise DrainingError, StartingError or EngineDownError when requests cannot be served now."""
        if self.draining:
            raise DrainingError("the service is shutting down")
        self.engine.check()

    @property
    def max_images(self) -> int:
        """The most images of one request: no more than there are places, once the engine has said how many."""
        return min(self.settings.max_images, self.engine.capacity or self.settings.max_images)

    @contextmanager
    def places(self, images: int, *, degraded: bool = False) -> Iterator[Callable[[int], None]]:
        """Places for `images` images while they are decoded and run; what is yielded gives some back earlier.

        `degraded` when brown-out chose their operating point.

        Raises:
            OverloadedError, StartingError, EngineDownError: what `Engine.admit` raises.
        """
        try:
            self.engine.admit(images, degraded=degraded)
        except OverloadedError as error:
            self.metrics.shed.labels(error.reason).inc(images)
            raise
        held = images

        def give_back(some: int) -> None:
            nonlocal held
            held -= some
            self.engine.release(some)

        try:
            yield give_back
        finally:
            self.engine.release(held)

    def describe(self) -> dict[str, Any]:
        """What `GET /model` says: what `msmlp info` does, without what concerns the machine that trained."""
        document = describe(self.weights, self.calibration)
        private = ("command", "git_commit", "torch")
        document["training"] = {k: v for k, v in document["training"].items() if k not in private}
        return {**document, "default_policy": self.policy.default}


def pick_engine(settings: Settings, selected: Selection) -> str:
    """`auto` takes a process for torch and for a GPU, and a thread for ONNX Runtime on a CPU.

    A stage of torch is dozens of small operations, each of which would wait for the interpreter that the web side
    holds; ONNX Runtime's is one. And a GPU's errors can outlive whatever caused them, but not the process.
    """
    if settings.engine != "auto":
        return settings.engine
    return "process" if selected.name == "torch" or selected.device != "cpu" else "thread"


def build_service(settings: Settings, select: Callable[..., Selection] = select_backend) -> Service:
    """Load and check the weights folder and put a service together; the engine starts with the app.

    `select` chooses the backend; `msmlp bench http` gives one that computes nothing.

    Raises:
        CallerError: weights or settings that do not fit.
    """
    weights = load_weights(settings.weights)
    calibration = load_calibration(weights)
    manifest = weights.manifest
    stages = len(manifest.cascade.stages)
    name, version = manifest.name, model_version(weights, calibration)
    metrics = Metrics(manifest.gflops_cumulative, name, version)
    policy = Policy(calibration, manifest.gflops_cumulative, settings.policy)

    # Built on the engine's thread: torch's thread pool and a GPU's context belong to it.
    wanted = BackendSettings(
        settings.device,
        settings.dtype,
        settings.provider,
        capacity=settings.capacity,
        reserve=SHADOW_SLOTS if settings.shadow else 0,
        max_batch=settings.max_batch,
    )
    selected = select(weights, calibration, wanted, settings.backend)
    start: Callable[..., Handle] = Worker
    if pick_engine(settings, selected) == "process":
        size, places = manifest.cascade.image_size, 2 * settings.max_images
        start = partial(ProcessWorker, stages=stages, size=size, places=places)
    engine = Engine(
        selected.build,
        capacity=settings.capacity,
        observe=metrics.observe,
        max_wait_seconds=settings.max_wait_ms / 1e3,
        costs=policy.costs(),
        brownout_seconds=settings.brownout_ms / 1e3,
        shadow_every=round(1 / settings.shadow) if settings.shadow else 0,
        worker=start,
    )
    metrics.watch(engine, policy)
    worker = engine.worker
    if isinstance(worker, ProcessWorker):
        metrics.watch_process(lambda: worker.pid)
    decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="msmlp-decode")
    statistics = Statistics()
    accounts = Accounts(metrics.ended, statistics.ended)
    return Service(settings, weights, calibration, policy, metrics, engine, decoders, statistics, accounts)


async def service_of(request: Request) -> Service:
    """The service behind a request (a FastAPI dependency; one that is not async would cost a thread each time)."""
    service: Service = request.app.state.service
    return service
