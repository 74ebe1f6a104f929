"""What the work of a replica costs, in seconds: every stage by batch size, and the event loop's share of a request.

Measured on this machine, or read from a file that `msmlp plan --save-costs` wrote on another one.
"""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from msmlp.bench.generator import PATIENCE_SECONDS, Connection, Load, Seen, closed_loop, offer, request_bytes
from msmlp.bench.http import NULL, SERVE
from msmlp.bench.images import form_bytes, pick_images, thumbnails
from msmlp.bench.processes import Server, server_process
from msmlp.bench.stages import Floats, StageSamples, backend_times
from msmlp.model.errors import DataError
from msmlp.model.weights import Calibration, Weights
from msmlp.model.weights.files import read_json, validated
from msmlp.service.engine.core import SHADOW_SLOTS, warmed
from msmlp.service.engine.transport import MOST_SECONDS
from msmlp.service.service import plan_engine
from msmlp.service.settings import Settings

SAMPLES = 30
"""Of every stage in every bucket."""
LOAD_SECONDS = 3.0
FEW, MANY = 4, 32
"""Connections that keep a front end busy, with small batches and with large ones."""
FORM_IMAGES = 16
IDLE_SECONDS = 0.01
"""Between requests to a front end that is measured cold; after longer waits a request costs no more in a simulation."""

Progress = Callable[[str], None]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Costs(BaseModel):
    """All costs are in seconds. `stage_seconds` [K][buckets] is t_k(b); `spread` the standard deviation of its
    logarithm. `request_seconds` is a front end's work for a request of one image, `image_seconds` for each further
    image, `refusal_seconds` for a 429; `batch_seconds` is the engine's work around a batch. A thread that had nothing
    to do takes `wake_seconds` longer, and `wake_share` of the time that it waited, of at most IDLE_SECONDS, since
    caches and clocks are cold. `proxy_seconds` is the work of one proxy in front of all replicas (Ray Serve's, say),
    per request, there and back, and `proxy_latency_seconds` how much longer an answer takes through it beside that
    work. `permits` images may be in flight.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="the weights")
    device: str
    backend: str
    layout: Literal["inline", "process"]
    front_ends: int = Field(default=1, ge=1)
    in_flight: int = Field(default=1, ge=1)
    permits: int = Field(ge=1)
    buckets: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    stage_seconds: tuple[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], ...] = Field(min_length=1)
    spread: float = Field(default=0.0, ge=0, le=1)
    request_seconds: Seconds
    image_seconds: Seconds
    refusal_seconds: Seconds
    batch_seconds: Seconds = 0.0
    wake_seconds: Seconds = 0.0
    wake_share: float = Field(default=0.0, ge=0, le=1)
    proxy_seconds: Seconds = 0.0
    proxy_latency_seconds: Seconds = 0.0

    def wake(self, idle: float) -> float:
        """Seconds that a thread takes longer after it had nothing to do for `idle` seconds."""
        return self.wake_seconds + self.wake_share * min(idle, IDLE_SECONDS) if idle > 0 else 0.0

    @model_validator(mode="after")
    def _a_time_for_every_bucket(self) -> Self:
        if sorted(set(self.buckets)) != list(self.buckets):
            raise ValueError(f"buckets: expected strictly increasing sizes, got {self.buckets}")
        if any(len(row) != len(self.buckets) for row in self.stage_seconds):
            raise ValueError(f"stage_seconds: expected {len(self.buckets)} numbers per stage, one per bucket")
        return self


def read_costs(path: Path, weights: Weights) -> Costs:
    """Raises DataError if there is no such file or it is for other weights, WeightsError if it is damaged."""
    read = read_json(path)
    if read is None:
        raise DataError(f"{path} does not exist; msmlp plan --save-costs {path} measures this machine and writes it")
    costs = validated(Costs, read[1], path)
    stages = len(weights.manifest.cascade.stages)
    if costs.name != weights.manifest.name or len(costs.stage_seconds) != stages:
        found, expected = (
            f"{costs.name} with {len(costs.stage_seconds)} stages",
            f"{weights.manifest.name} with {stages}",
        )
        raise DataError(f"{path} was measured for {found}; expected {expected}: measure again with --save-costs")
    return costs


def measure_costs(settings: Settings, weights: Weights, calibration: Calibration, progress: Progress) -> Costs:
    """Measure this machine, for about a minute; keep it idle. An inline replica is measured on a single core.

    Raises:
        MsmlpError: the weights, the device or a server process of the measurement failed.
    """
    engine = plan_engine(settings, weights, calibration)
    selected, inline = engine.selected[0][0], engine.layout.engine != "process"
    progress("measuring the stages")
    with _one_core() if inline else nullcontext():
        backend, _ = warmed(selected.build, MOST_SECONDS if inline else np.inf)
        images = pick_images(None, backend.buckets[-1], weights.manifest.views)
        samples = StageSamples(partial(backend_times, backend), backend.buckets, images)
        rng = np.random.default_rng(0)
        for _ in range(SAMPLES):
            for bucket in rng.permutation(backend.buckets).tolist():
                samples.sample(bucket)
    measured = samples.costs()
    # Where an engine process has the device, its CPU time is not the front end's.
    program = ["-c", SERVE, "serve"] if inline else ["-c", NULL]
    size = weights.manifest.preprocess.size
    host = _host_costs(program, settings, size, measured.seconds[:, 0] if inline else None, progress)
    return Costs(
        name=weights.manifest.name,
        device=backend.device,
        backend=backend.name,
        layout="inline" if inline else "process",
        front_ends=1 if inline else engine.layout.frontends,
        in_flight=backend.in_flight,
        permits=backend.capacity - (SHADOW_SLOTS if settings.shadow else 0),
        buckets=backend.buckets,
        stage_seconds=tuple(map(tuple, measured.seconds.tolist())),
        spread=samples.spread(),
        **host,
    )


@contextmanager
def _one_core() -> Iterator[None]:
    """What this thread does, and threads that it starts, on a single core."""
    if not hasattr(os, "sched_setaffinity"):  # only Linux has it
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class _Work:
    """What a server did for a load: CPU seconds, those of the stages, batches [K], answers and refusals."""

    cpu: float
    stages: float
    batches: Floats
    answered: int
    refused: int

    def host(self, batch: float = 0.0) -> float:
        """CPU seconds beside the stages, and beside `batch` seconds a batch."""
        return self.cpu - self.stages - batch * float(self.batches.sum())


def _host_costs(
    program: Sequence[str], settings: Settings, size: int, single: Floats | None, progress: Progress
) -> dict[str, float]:
    """A front end's costs by name. Few connections bring smaller batches than many: the difference is what a batch
    costs beside its stage. One alone lets the front end sleep before each request: what is left is the wake-up. One
    that pauses lets it grow cold.
    `single` [K] are the seconds of a batch of one image, None where the stages compute nothing.

    Raises:
        MsmlpError: a server did not start or did not answer, or CPU time is not known.
    """
    files = thumbnails(size)
    form = form_bytes(files[:FORM_IMAGES])
    words = [*program, "--frontends=1", "--max-wait-ms=0", "--brownout-ms=0", "--shadow=0", "--port=0"]
    words += ["--drain-seconds=0", f"--weights={settings.weights}", f"--device={settings.device}"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as generator:

        def work(server: Server, requests: Sequence[bytes], connections: int, loop: Any = closed_loop) -> _Work:
            load = Load(server.url, tuple(requests), connections, LOAD_SECONDS)
            return _work(server, lambda: generator.submit(offer, load, None, loop).result())

        with server_process("plan", [*words, "--capacity=1024"], progress) as server:
            singles = [request_bytes(server.url, "/classify", file, "application/octet-stream") for file in files]
            alone, few, many = (work(server, singles, connections) for connections in (1, FEW, MANY))
            cold = work(server, singles, 1, _pausing)
            forms = work(server, [request_bytes(server.url, "/classify", *form)], 1)
        with server_process("plan", [*words, "--capacity=1"], progress) as server:
            singles = [request_bytes(server.url, "/classify", file, "application/octet-stream") for file in files]
            full = work(server, singles, MANY)
    if not (alone.answered and cold.answered and few.answered and many.answered and forms.answered and full.refused):
        raise DataError(f"the server that is measured gave no answers: {alone}, {few}, {many}, {forms}, {full}")
    slower = few.host() / few.answered - many.host() / many.answered
    smaller = few.batches.sum() / few.answered - many.batches.sum() / many.answered
    batch = max(0.0, slower / max(float(smaller), 0.1))
    request = many.host(batch) / many.answered
    wake, long = (
        (each.host(batch) + (0.0 if single is None else each.stages - float(each.batches @ single))) / each.answered
        - request
        for each in (alone, cold)
    )
    image = (forms.host(batch) / forms.answered - request - max(0.0, wake)) / (FORM_IMAGES - 1)
    refusal = (full.host(batch) - request * full.answered) / full.refused
    return {
        "request_seconds": request,
        "image_seconds": max(0.0, image),
        "refusal_seconds": min(max(0.0, refusal), request),
        "batch_seconds": batch,
        "wake_seconds": max(0.0, wake),
        "wake_share": min(1.0, max(0.0, long - max(0.0, wake)) / IDLE_SECONDS),
    }


async def _pausing(load: Load, seen: Seen) -> None:
    """One connection that waits for IDLE_SECONDS after each answer."""
    until = time.perf_counter() + load.seconds
    with closing(Connection(load, seen)) as connection:
        for number in itertools.count():
            if (now := time.perf_counter()) >= until:
                return
            await connection.ask(number, now)
            await asyncio.sleep(IDLE_SECONDS)


def _work(server: Server, send: Callable[[], Seen]) -> _Work:
    send()  # warm
    before, (computed, batches) = server.cpu_seconds(), _stages(server)
    seen = send()
    after, (computed_after, batches_after) = server.cpu_seconds(), _stages(server)
    if before is None or after is None:
        raise DataError("costs can be measured on Linux only, where /proc has the CPU time; elsewhere use --costs")
    stages = float((computed_after - computed).sum())
    return _Work(after - before, stages, batches_after - batches, seen.statuses["200"], seen.statuses["429"])


def _stages(server: Server) -> tuple[Floats, Floats]:
    """Seconds of all batches of every stage so far, and how many there were, [K]."""
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text

    def column(name: str) -> Floats:
        found = re.findall(rf"^msmlp_stage_compute_seconds_{name}{{.*}} (\S+)$", text, re.MULTILINE)
        return np.array(found, dtype=np.float64)

    return column("sum"), column("count")
