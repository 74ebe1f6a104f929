"""The engine at saturation and the baselines, with the same stages, buckets and thresholds, measured in rounds.

Everything runs on the calling thread: torch on two threads of one process means two OpenMP teams that compete. All keep
as many batches in flight as the backend takes.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np

from msmlp.bench.stages import Floats, Ints, Pixels, PlainStages, StageCosts, StageSamples
from msmlp.model.backends.protocol import Slots, StageBackend, StageOutput, warm_up
from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import Reason, decide
from msmlp.service.engine.core import EngineCore
from msmlp.service.engine.messages import Answers, ExitParameters, Failed, Outbound, Ran, Submit

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
    """Engine core and backend, handed everything at once in requests of REQUEST images.

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

    @property
    def exits(self) -> Ints:
        """Where the images of the last run left, in the order they landed."""
        return np.concatenate([message.exit for message in self._landed if isinstance(message, Answers)])


def full(backend: StageBackend, images: Pixels, batch: int) -> Batches:
    """The model without exits: every image through all stages in batches of `batch`."""
    return _drive(backend, images, batch, partial(_walk, backend))


def masked(backend: StageBackend, images: Pixels, thresholds: Floats) -> Batches:
    """Exits are decided and honoured in the answer, but no image leaves its batch."""
    return _drive(backend, images, backend.buckets[-1], partial(_walk, backend, thresholds=thresholds))


def shrinking(backend: StageBackend, images: Pixels, thresholds: Floats) -> Batches:
    """Images that exit make their batch smaller; survivors of different batches never meet."""
    return _drive(backend, images, backend.buckets[-1], partial(_walk, backend, thresholds=thresholds, shrink=True))


def _walk(backend: StageBackend, images: Pixels, thresholds: Floats | None = None, *, shrink: bool = False) -> Walk:
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


def _drive(backend: StageBackend, images: Pixels, batch: int, walk: Callable[[Pixels], Walk]) -> Batches:
    """Walk all images to their ends, `in_flight` batches at a time."""
    ran: Batches = []
    flying: deque[tuple[Walk, Any]] = deque()
    waiting = (walk(images[start : start + batch]) for start in range(0, len(images), batch))

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


class Saturation:
    """Runs and samples at one cap, round by round. The backend's largest bucket is the cap."""

    def __init__(self, backend: StageBackend, plain: PlainStages, images: Pixels, thresholds: Floats) -> None:
        self.backend, self._images = backend, len(images)
        engine = Saturated(backend, warm_up(backend))  # warm-up may step the buckets down
        self._samples = StageSamples(backend, plain, images)
        for bucket in backend.buckets * FIRST_SAMPLES:
            self._samples.sample(bucket)
        self._full_batch = self.costs().best_batch()
        self._ways: dict[str, Callable[[], Batches]] = {
            "engine": partial(engine.run, images, thresholds),
            "full": partial(full, backend, images, self._full_batch),
            "masked": partial(masked, backend, images, thresholds),
            "shrinking": partial(shrinking, backend, images, thresholds),
        }
        self._seconds: dict[str, list[float]] = {name: [] for name in self._ways}
        self._batches: dict[str, Batches] = {name: [] for name in self._seconds}

    def round(self, samples: int, rng: np.random.Generator) -> None:
        """Each way to serve once, among `samples` samples of every stage and bucket, in random order."""
        tasks: list[Callable[[], None]] = [partial(self._run, name) for name in self._ways]
        tasks += [partial(self._samples.sample, bucket) for bucket in self.backend.buckets * samples]
        for i in rng.permutation(len(tasks)):
            tasks[i]()

    def _run(self, name: str) -> None:
        start = time.perf_counter()
        batches = self._ways[name]()
        self._seconds[name].append(time.perf_counter() - start)
        self._batches[name] += batches

    def costs(self) -> StageCosts:
        return self._samples.costs()[0]

    def document(self, reach: Floats) -> dict[str, Any]:
        """The results; `reach` [K] is the share of images that enter each stage."""
        costs, plain = self._samples.costs()
        speed = {name: self._images / statistics.median(times) for name, times in self._seconds.items()}
        bound = costs.images_per_second(reach)
        return {
            "max_batch": self.backend.buckets[-1],
            "plain_images_per_second": plain.images_per_second(reach),
            "bound_images_per_second": bound,
            "engine_images_per_second": speed["engine"],
            "efficiency": speed["engine"] / bound,
            "full_batch": self._full_batch,
            "baselines": {name: speed[name] for name in BASELINES},
            "engine_over": self._engine_over(),
            "mean_batch": {name: _mean_batch(of, self.backend.stages) for name, of in self._batches.items()},
            "stage_ms": _milliseconds(costs),
        }

    def _engine_over(self) -> dict[str, float]:
        """The engine's speed over each baseline's in the same round; medians over the rounds."""
        engine = self._seconds["engine"]
        return {
            name: statistics.median(b / e for b, e in zip(self._seconds[name], engine, strict=True))
            for name in BASELINES
        }


def _mean_batch(batches: Batches, stages: int) -> list[float]:
    sizes = [[images for k, images in batches if k == stage] for stage in range(stages)]
    return [round(statistics.mean(of), 2) if of else 0.0 for of in sizes]


def _milliseconds(costs: StageCosts) -> list[dict[str, Any]]:
    rows = [dict(zip(map(str, costs.buckets), row, strict=True)) for row in (1e3 * costs.seconds).round(4).tolist()]
    return [{"stage": k + 1, "ms": row} for k, row in enumerate(rows)]
