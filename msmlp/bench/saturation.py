"""The engine at saturation and the baselines, with the same stages, buckets and thresholds, measured in rounds.

Everything runs on the calling thread: torch on two threads of one process means two OpenMP teams that compete. All keep
as many batches in flight as the backend takes.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol

import numpy as np

from msmlp.bench.stages import Floats, Pixels, StageCosts, StageSamples, backend_times
from msmlp.model.backends.protocol import Slots, StageBackend, StageOutput, warm_up
from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import Reason, decide
from msmlp.model.imported import ImportedCascade
from msmlp.model.shape import parts
from msmlp.model.weights import Calibration, Weights, load_graphs
from msmlp.service.engine.core import EngineCore
from msmlp.service.engine.messages import ExitParameters, Failed, Outbound, Ran, Submit

Batches = list[tuple[int, int]]
"""(stage 0-based, images) of every batch that ran."""
Walk = Generator[tuple[int, Slots], StageOutput, None]
"""One batch's way through the stages: it yields a stage and slots, and is sent the output."""

BASELINES = ("full", "masked", "shrinking")
REQUEST = 16
"""Images per request at saturation."""
FIRST_SAMPLES = 5
"""Samples before the first round, from which the full model's best batch is chosen."""


class Saturated:
    """Engine core and backend, handed everything up front in requests of REQUEST images.

    `seconds` [K, buckets] is what warm-up measured.
    """

    def __init__(self, backend: StageBackend, seconds: Floats) -> None:
        self._landed: list[Outbound] = []
        self._core = EngineCore(backend, self._landed.append, seconds=seconds)
        self._requests = 0

    def run(self, images: Pixels, thresholds: Floats) -> Batches:
        """Classify all images; DeviceError when a batch failed."""
        self._landed.clear()
        parameters = ExitParameters(thresholds, 1, len(thresholds) + 1)
        for start in range(0, len(images), REQUEST):
            self._core.receive(Submit(self._requests, images[start : start + REQUEST], parameters, time.monotonic()))
            self._requests += 1
        while not self._core.idle:
            self._core.run_once()
        failed = [message.detail for message in self._landed if isinstance(message, Failed)]
        if failed:
            raise DeviceError(failed[0])
        return [(message.stage, message.images) for message in self._landed if isinstance(message, Ran)]


def _walk(backend: StageBackend, images: Pixels, thresholds: Floats | None, shrink: bool) -> Walk:
    slots = alive = backend.admit(images)
    for stage in range(backend.stages):
        output = yield stage, alive
        if thresholds is None:
            continue
        limits = np.full(len(alive), thresholds[stage] if stage < len(thresholds) else 0.0)
        reasons = decide(stage + 1, backend.stages, output.score, limits, 1, backend.stages)
        if shrink:
            alive = alive[reasons == Reason.GOES_ON]
            if not len(alive):
                break
    backend.release(slots)


def baseline(
    backend: StageBackend, images: Pixels, batch: int, thresholds: Floats | None = None, *, shrink: bool = False
) -> Batches:
    """All images in batches of up to `batch`, of which no two ever merge.

    Without thresholds every image runs through all stages (full). With them exits are decided and honoured in the
    answer: images stay in their batch to its end (masked), or leave it and make it smaller (shrinking).
    """
    ran: Batches = []
    flying: deque[tuple[Walk, Any]] = deque()
    starts = range(0, len(images), batch)
    waiting = (_walk(backend, images[start : start + batch], thresholds, shrink) for start in starts)

    def go_on(walk: Walk, output: StageOutput | None) -> None:
        try:
            stage, slots = next(walk) if output is None else walk.send(output)
        except StopIteration:
            return
        ran.append((stage, len(slots)))
        flying.append((walk, backend.launch(stage, slots)))

    while True:
        while len(flying) < backend.in_flight and (new := next(waiting, None)) is not None:
            go_on(new, None)
        if not flying:
            return ran
        oldest, handle = flying.popleft()
        go_on(oldest, backend.collect(handle))


class PlainStages(Protocol):
    """The stages without slots: contiguous batches in, features kept."""

    def times(self, pixels: Pixels) -> Floats:
        """Seconds of every stage over one batch, [K]; scores and probabilities come back, as from the backend."""


def plain_stages(weights: Weights, calibration: Calibration, backend: StageBackend) -> PlainStages:
    imported = isinstance(weights.manifest.cascade, ImportedCascade)
    return PlainGraphs(weights, calibration, backend) if imported else PlainModules(weights, backend)


class PlainGraphs:
    """An imported cascade's, on a CPU or a GPU; features pass through the host."""

    def __init__(self, weights: Weights, calibration: Calibration, backend: StageBackend) -> None:
        from msmlp.model.backends.onnx.base import CPU, CUDA, open_session

        provider, self._shape = CPU if backend.device == "cpu" else CUDA, weights.manifest.cascade.shape
        graphs = load_graphs(weights, calibration, backend.dtype)
        self._sessions = [open_session(graph, provider, capture=False).session for graph in graphs]

    def times(self, pixels: Pixels) -> Floats:
        sizes, seconds, upstream = self._shape.views, [], None
        rows = zip(sizes, parts(sizes), strict=True)
        views = [pixels if len(sizes) == 1 else pixels[:, part].reshape(-1, size, size, 3) for size, part in rows]
        for stage, session in enumerate(self._sessions):
            start = time.perf_counter()
            view = self._shape.reads[stage]
            inputs = {} if view is None else {"pixels": views[view]}
            hands_on = self._shape.features[stage] is not None
            outputs = session.run(
                ["probabilities", "score", *["features"] * hands_on],
                inputs if upstream is None else {**inputs, "upstream": upstream},
            )
            upstream = outputs[2] if hands_on else None
            seconds.append(time.perf_counter() - start)
        return np.array(seconds)


class PlainModules:
    """Our own networks', folded, with torch."""

    def __init__(self, weights: Weights, backend: StageBackend) -> None:
        import torch

        from msmlp.model.nn.served import served_stages

        # int8 graphs have 8 bits in weights and products only; all other modules run in float32.
        kind = "float32" if backend.dtype == "int8" else backend.dtype
        self._device, self._dtype = torch.device(backend.device), getattr(torch, kind)
        self._stages = served_stages(weights, (1.0,) * backend.stages)
        for stage in self._stages:
            stage.to(self._device)
            stage.stage.to(self._dtype)

    def times(self, pixels: Pixels) -> Floats:
        import torch

        batch = torch.from_numpy(pixels).to(self._device)
        upstream, seconds = None, []
        for stage in self._stages:
            start = time.perf_counter()
            lowered = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
            with torch.inference_mode(), lowered:
                upstream, probabilities, score = stage(batch, upstream)
            score.cpu(), probabilities.cpu()
            seconds.append(time.perf_counter() - start)
        return np.array(seconds)


class Saturation:
    """Runs and samples at one cap, round by round. The backend's largest bucket is the cap."""

    def __init__(self, backend: StageBackend, plain: PlainStages, images: Pixels, thresholds: Floats) -> None:
        self.backend, self._images = backend, len(images)
        engine = Saturated(backend, warm_up(backend))  # warm-up may step the buckets down
        self._backend_times = StageSamples(partial(backend_times, backend), backend.buckets, images)
        self._plain_times = StageSamples(plain.times, backend.buckets, images)
        for task in self._sampling(FIRST_SAMPLES):
            task()
        most = backend.buckets[-1]
        self._ways: dict[str, Callable[[], Batches]] = {
            "engine": partial(engine.run, images, thresholds),
            "full": partial(baseline, backend, images, self.costs().best_batch()),
            "masked": partial(baseline, backend, images, most, thresholds),
            "shrinking": partial(baseline, backend, images, most, thresholds, shrink=True),
        }
        self._seconds: dict[str, list[float]] = {name: [] for name in self._ways}
        self._batches: dict[str, Batches] = {name: [] for name in self._seconds}

    def round(self, samples: int, rng: np.random.Generator) -> None:
        """Each way to serve once, among `samples` samples of every stage and bucket, in random order."""
        tasks: list[Callable[[], None]] = [partial(self._run, name) for name in self._ways]
        tasks += self._sampling(samples)
        for i in rng.permutation(len(tasks)):
            tasks[i]()

    def _sampling(self, samples: int) -> list[Callable[[], None]]:
        both = (self._backend_times, self._plain_times)
        return [partial(each.sample, bucket) for bucket in self.backend.buckets * samples for each in both]

    def _run(self, name: str) -> None:
        start = time.perf_counter()
        batches = self._ways[name]()
        self._seconds[name].append(time.perf_counter() - start)
        self._batches[name] += batches

    def costs(self) -> StageCosts:
        return self._backend_times.costs()

    def document(self, reach: Floats) -> dict[str, Any]:
        """The results; `reach` [K] is the share of images that enter each stage."""
        speed = {name: self._images / statistics.median(times) for name, times in self._seconds.items()}
        bound, engine = self.costs().images_per_second(reach), self._seconds["engine"]
        return {
            "max_batch": self.backend.buckets[-1],
            "plain_images_per_second": self._plain_times.costs().images_per_second(reach),
            "bound_images_per_second": bound,
            "engine_images_per_second": speed["engine"],
            "efficiency": speed["engine"] / bound,
            "baselines": {name: speed[name] for name in BASELINES},
            "engine_over": {
                name: statistics.median(b / e for b, e in zip(self._seconds[name], engine, strict=True))
                for name in BASELINES
            },
            "mean_batch": {name: _mean_batch(of, self.backend.stages) for name, of in self._batches.items()},
        }


def _mean_batch(batches: Batches, stages: int) -> list[float]:
    sizes = [[images for k, images in batches if k == stage] for stage in range(stages)]
    return [round(statistics.mean(of), 2) if of else 0.0 for of in sizes]
