"""What the work of a replica costs, in seconds: every stage by batch size, and the event loop's share of a request.

Measured on this machine, or read from a file that `msmlp plan --save-costs` wrote on another one.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from msmlp.bench.generator import Load, offer, request_bytes
from msmlp.bench.http import NULL
from msmlp.bench.images import form_bytes, pick_images, thumbnails
from msmlp.bench.processes import server_process
from msmlp.bench.stages import StageSamples, backend_times
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
CONNECTIONS = 32
FORM_IMAGES = 16

Progress = Callable[[str], None]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Costs(BaseModel):
    """All costs are in seconds. `stage_seconds` [K][buckets] is t_k(b); `spread` the standard deviation of its
    logarithm. `request_seconds` is a front end's work for a request of one image, `image_seconds` for each further
    image, `refusal_seconds` for a 429; `batch_seconds` is the engine's work around a batch, `proxy_seconds` that of one
    proxy in front of all replicas (Ray Serve's, say), per request, there and back. `permits` images may be in flight.
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
    proxy_seconds: Seconds = 0.0

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
        images = pick_images(None, backend.buckets[-1], backend.size)
        samples = StageSamples(partial(backend_times, backend), backend.buckets, images)
        rng = np.random.default_rng(0)
        for _ in range(SAMPLES):
            for bucket in rng.permutation(backend.buckets).tolist():
                samples.sample(bucket)
    measured = samples.costs()
    one, many, refused = _host_seconds(settings, backend.size, progress)
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
        request_seconds=one,
        image_seconds=max(0.0, (many - one) / (FORM_IMAGES - 1)),
        refusal_seconds=refused,
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


def _host_seconds(settings: Settings, size: int, progress: Progress) -> tuple[float, float, float]:
    """CPU seconds of a front end without a device: per request of one image, of FORM_IMAGES, and per refusal."""
    files = thumbnails(size)
    form = form_bytes(files[:FORM_IMAGES])
    arguments = ["--frontends=1", "--max-wait-ms=0", "--brownout-ms=0", "--port=0", "--drain-seconds=0"]
    arguments.append(f"--weights={settings.weights}")
    found = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as generator:
        for capacity in (1024, 1):
            arguments_here = ["-c", NULL, *arguments, f"--capacity={capacity}"]
            with server_process("null", arguments_here, progress) as server:
                singles = [request_bytes(server.url, "/classify", file, "application/octet-stream") for file in files]
                forms = [request_bytes(server.url, "/classify", *form)]
                for requests in (singles, forms) if capacity > 1 else (singles,):
                    load = Load(server.url, tuple(requests), CONNECTIONS, LOAD_SECONDS)
                    generator.submit(offer, load).result()  # warm
                    before = server.cpu_seconds()
                    seen = generator.submit(offer, load).result()
                    after = server.cpu_seconds()
                    if before is None or after is None:
                        raise DataError(
                            "costs can be measured on Linux only, where /proc has the CPU time; elsewhere use --costs"
                        )
                    expected = "200" if capacity > 1 else "429"
                    if not seen.statuses[expected]:
                        raise DataError(
                            f"the server that is measured answered {dict(seen.statuses)}; expected {expected}"
                        )
                    found.append((after - before) / sum(seen.statuses.values()))
    one, many, refused = found
    return one, many, min(refused, one)
