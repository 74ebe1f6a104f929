"""ONNX Runtime alone, in a process of its own on all cores: what no server on this machine can pass."""

import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.graphs import Graphs, decode
from benchmarks.peers.servers import Case

BARE, DECODED = "bare ONNX Runtime", "decode + bare"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHOOSING_SECONDS = 0.5
WARM_SECONDS = 0.2


@dataclass(frozen=True)
class Way:
    """How it is run: in batches of so many, by one caller with a thread a core or by a caller a core with one thread.

    Idle threads spin or not: with two stages those of one take cores from the other.
    """

    batch: int
    callers: int
    threads: int
    spinning: bool

    def __str__(self) -> str:
        spinning = " that spin" if self.spinning else ""
        return f"batches of {self.batch}, {self.callers} x {self.threads} threads{spinning}"


def ways(cores: int) -> list[Way]:
    """All that are tried."""
    return [
        Way(batch, callers, threads, spinning)
        for batch, (callers, threads, spinning) in product(
            BATCHES, ((1, cores, False), (1, cores, True), (cores, 1, False))
        )
    ]


class Bare:
    """Measures a case's graphs in `process` (an executor of one), in the ways that were fastest at first."""

    def __init__(self, process: Executor, seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self._best: dict[tuple[str, bool], Way] = {}

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """Images a second, without decoding and with it."""
        return [self._row(case, name, decodes) for name, decodes in ((BARE, False), (DECODED, True))]

    def _row(self, case: Case, name: str, decodes: bool) -> dict[str, Any]:
        if (case.name, decodes) not in self._best:
            speeds = {way: self._speed(case, way, decodes, CHOOSING_SECONDS) for way in ways(_cores())}
            self._best[case.name, decodes] = max(speeds, key=lambda way: speeds[way])
        way = self._best[case.name, decodes]
        speed = self._speed(case, way, decodes, self._seconds)
        return {"case": case.name, "server": name, "connections": None, "way": str(way), "requests_per_second": speed}

    def _speed(self, case: Case, way: Way, decodes: bool, seconds: float) -> float:
        return self._process.submit(speed, case.folder, case.thresholds, case.files, way, decodes, seconds).result()


def speed(
    folder: Path, thresholds: tuple[float, ...], files: tuple[bytes, ...], way: Way, decodes: bool, seconds: float
) -> float:
    """Images a second of the graphs, over images that are decoded already or are decoded batch by batch."""
    graphs = _graphs(folder, thresholds, way.threads, way.spinning)
    files *= way.batch if len(files) % way.batch else 1
    encoded = [files[start : start + way.batch] for start in range(0, len(files), way.batch)]
    batches = [np.stack([decode(file, graphs.size) for file in each]) for each in encoded]

    def call(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            turn = done % len(batches)
            pixels = np.stack([decode(file, graphs.size) for file in encoded[turn]]) if decodes else batches[turn]
            graphs.classify(pixels)
            done += 1
        return done

    with ThreadPoolExecutor(way.callers) as callers:
        for length in (WARM_SECONDS, seconds):
            start = time.perf_counter()
            done = sum(callers.map(call, [start + length] * way.callers))
            passed = time.perf_counter() - start
    return done * way.batch / passed


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@lru_cache
def _graphs(folder: Path, thresholds: tuple[float, ...], threads: int, spinning: bool) -> Graphs:
    return Graphs(folder, list(thresholds), threads, spinning)
