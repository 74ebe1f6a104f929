"""The bounds without a server: ONNX Runtime alone in a process of its own, on all cores, with decoding and without.

Also what an image costs each stage in CPU time, by batch size: the *compute* in the CPU time of a server.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.programs import Floats, Graphs, Pixels, decode
from benchmarks.peers.servers import Case

BARE, DECODED, ALONE = "bare ONNX Runtime", "decode + bare", "decode + bare, one by one"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHOOSING_SECONDS, WARM_SECONDS = 0.3, 0.1
COST_SECONDS = 0.1
"""Per stage and batch size."""


@dataclass(frozen=True)
class Way:
    """Batch size, and how cores are shared: one caller with a thread per core, or one caller per core.

    Idle threads spin or not: with two stages, spinning threads of one take cores from the other.
    """

    batch: int
    callers: int
    threads: int
    spinning: bool

    def __str__(self) -> str:
        spinning = " that spin" if self.spinning else ""
        return f"batches of {self.batch}, {self.callers} x {self.threads} threads{spinning}"


def ways(cores: int) -> list[Way]:
    return [
        Way(batch, callers, threads, spinning)
        for batch, (callers, threads, spinning) in product(
            BATCHES, ((1, cores, False), (1, cores, True), (cores, 1, False))
        )
    ]


@dataclass(frozen=True)
class Costs:
    """CPU `seconds` [stages][batch sizes] of an image in a batch of one of the `sizes`."""

    sizes: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def of(self, batches: Counter[str]) -> float:
        """CPU seconds of images counted by `batch_key`; sizes between two that were measured are interpolated."""
        total = 0.0
        for key, images in batches.items():
            stage, size = map(int, key.split(":"))
            total += images * float(np.interp(size, self.sizes, self.seconds[stage - 1]))
        return total


def batch_key(stage: int, size: int) -> str:
    """An image in a batch of `size` at a stage (1, 2, ...), as Counter's key and in JSON."""
    return f"{stage}:{size}"


class Bare:
    """Measures a case's graphs in `process` (an executor of one), always in the way that was fastest the first time.

    `each` is an executor with a process per core.
    """

    def __init__(self, process: Executor, each: Executor, seconds: float) -> None:
        self._process, self._each, self._seconds = process, each, seconds
        self._best: dict[tuple[str, bool], Way] = {}

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """Images/s: of the graphs, with decoding too, and with every image decoded and run alone."""
        ways_of = ((BARE, self._fastest(case, False)), (DECODED, self._fastest(case, True)))
        alone = Way(1, _cores(), 1, False)
        return [self._row(case, name, way) for name, way in (*ways_of, (ALONE, alone))]

    def costs(self, case: Case) -> Costs:
        """With every core at work, as it is under load; the mean of the cores."""
        found = [self._each.submit(costs, case.folder, case.files) for _ in range(_cores())]
        mean = np.mean([each.result() for each in found], axis=0)
        return Costs(BATCHES, tuple(map(tuple, mean.tolist())))

    def _fastest(self, case: Case, decodes: bool) -> Way:
        if (case.name, decodes) not in self._best:
            speeds = {way: self._speed(case, way, decodes, CHOOSING_SECONDS) for way in ways(_cores())}
            self._best[case.name, decodes] = max(speeds, key=lambda way: speeds[way])
        return self._best[case.name, decodes]

    def _row(self, case: Case, name: str, way: Way) -> dict[str, Any]:
        speed = self._speed(case, way, name != BARE, self._seconds)
        return {"case": case.name, "server": name, "connections": None, "way": str(way), "requests_per_second": speed}

    def _speed(self, case: Case, way: Way, decodes: bool, seconds: float) -> float:
        return self._process.submit(speed, case.folder, case.thresholds, case.files, way, decodes, seconds).result()


def speed(
    folder: Path, thresholds: tuple[float, ...], files: tuple[bytes, ...], way: Way, decodes: bool, seconds: float
) -> float:
    """Images/s of the graphs, over images that are decoded already or are decoded batch by batch."""
    graphs = _graphs(folder, thresholds, way.threads, way.spinning)
    encoded = list(_batches(files, way.batch))
    batches = [_decoded(each, graphs.size) for each in encoded]

    def call(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            turn = done % len(batches)
            graphs.classify(_decoded(encoded[turn], graphs.size) if decodes else batches[turn])
            done += 1
        return done

    with ThreadPoolExecutor(way.callers) as callers:
        for length in (WARM_SECONDS, seconds):
            start = time.perf_counter()
            done = sum(callers.map(call, [start + length] * way.callers))
            passed = time.perf_counter() - start
    return done * way.batch / passed


def costs(folder: Path, files: tuple[bytes, ...]) -> list[list[float]]:
    """CPU seconds of an image [stages][BATCHES], on one thread."""
    graphs = _graphs(folder, (), 1, False)
    found: list[list[float]] = []
    features: Floats | None = None
    pixels = _decoded(next(_batches(files, BATCHES[-1])), graphs.size)
    for stage in range(graphs.stages):
        found.append([_cost(graphs, stage, pixels[:size], _first(features, size)) for size in BATCHES])
        *_, features = graphs.run(stage, pixels, features)
    return found


def _cost(graphs: Graphs, stage: int, pixels: Pixels, features: Floats | None) -> float:
    """CPU seconds of one image, in as many runs of the batch as the time allows."""
    until = time.perf_counter() + COST_SECONDS
    graphs.run(stage, pixels, features)
    done, start = 0, time.thread_time()
    while not done or time.perf_counter() < until:
        graphs.run(stage, pixels, features)
        done += 1
    return (time.thread_time() - start) / done / len(pixels)


def _batches(files: tuple[bytes, ...], size: int) -> Iterator[list[bytes]]:
    """All files in turn; the last batch is filled up with the first ones."""
    for start in range(0, len(files), size):
        yield [files[n % len(files)] for n in range(start, start + size)]


def _decoded(files: list[bytes], size: int) -> Pixels:
    return np.stack([decode(file, size) for file in files])


def _first(features: Floats | None, count: int) -> Floats | None:
    return None if features is None else features[:count]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@lru_cache
def _graphs(folder: Path, thresholds: tuple[float, ...], threads: int, spinning: bool) -> Graphs:
    return Graphs(folder, list(thresholds), threads, spinning)
