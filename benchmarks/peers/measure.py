"""The measurement: in each round every server takes its turn at every load; medians over the rounds are reported.

ONNX Runtime alone, in its own process on all cores, is measured too: no server on the machine can be faster.
"""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.programs import Answer, Graphs, decode
from benchmarks.peers.servers import Case, pause, resume
from msmlp.bench.generator import Load, Seen, request_bytes
from msmlp.bench.processes import Server

WARM_SECONDS = 0.3
TUNED_AT = 32
"""Connections at which settings are chosen, and bare ONNX Runtime takes its turn."""
TOLERANCE = 1e-6
"""How far a confidence may be off: batches of another size round differently. The confidences of two images differ by
more, so an answer to another image is noticed."""
BARE, DECODED = "bare ONNX Runtime", "decode + bare"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHOOSING_SECONDS, BARE_WARM_SECONDS = 0.5, 0.2
FIXED, COUNTS = ("case", "server", "connections", "way"), ("looked_at", "wrong")
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A server that is up and paused, and what is requested of it."""

    case: Case
    server: Server

    def load(self, connections: int, seconds: float) -> Load:
        """One image per request, cycling through them."""
        path = self.case.path(self.server.name)
        sent = (request_bytes(self.server.url, path, file, "application/octet-stream") for file in self.case.files)
        return Load(self.server.url, tuple(sent), connections, seconds)


def measure(
    entries: list[Entry],
    connections: tuple[int, ...],
    rounds: int,
    seconds: float,
    send: Callable[[Load], Seen],
    bare: Callable[[Case], list[Row]],
    say: Callable[[str], None],
) -> list[Row]:
    """One row per case, server and number of connections (`None` for bare ONNX Runtime)."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for number in range(rounds):
        for case, count in _loads(entries, connections):
            rows = bare(case) if count == nearest(connections) else []
            mine = [entry for entry in entries if entry.case is case]
            first = number % len(mine)  # so that no server always runs after the same one
            rows += [_run(entry, count, seconds, send) for entry in mine[first:] + mine[:first]]
            for row in rows:
                found.setdefault((row["case"], row["server"], row["connections"]), []).append(row)
            told = ", ".join(f"{row['server']} {row['requests_per_second']:.0f}" for row in rows)
            say(f"round {number + 1} of {rounds}, {case.name}, {count} connections: {told} requests/s")
    return [median(rows) for rows in found.values()]


def nearest(connections: tuple[int, ...]) -> int:
    """The number of connections at which bare ONNX Runtime is measured too."""
    return min(connections, key=lambda count: abs(count - TUNED_AT))


def _loads(entries: list[Entry], connections: tuple[int, ...]) -> Iterator[tuple[Case, int]]:
    cases = {entry.case.name: entry.case for entry in entries}
    for case in cases.values():
        for count in connections:
            yield case, count


def _run(entry: Entry, connections: int, seconds: float, send: Callable[[Load], Seen]) -> Row:
    server = entry.server
    resume(server)
    try:
        send(entry.load(connections, WARM_SECONDS))
        before, busy = _cpu_seconds(server), busy_seconds()
        seen = send(entry.load(connections, seconds))
        after, busy = _cpu_seconds(server), busy_seconds() - busy
    finally:
        pause(server)
    answered = len(seen.latencies)
    spent = after - before if before is not None and after is not None else None
    wrong, exits = look(seen, list(entry.case.right))
    p50, _, p99 = seen.percentiles_ms().tolist() if answered else [None] * 3
    return {
        "case": entry.case.name,
        "server": server.name,
        "connections": connections,
        "requests_per_second": answered / seen.seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "server_cpu_seconds_per_1000": 1e3 * spent / answered if spent is not None and answered else None,
        "generator_cpu": seen.cpu / seen.seconds,
        "others_cpu": max(0.0, busy - spent - seen.cpu) / seen.seconds if spent is not None else None,
        "statuses": seen.statuses,
        "looked_at": len(seen.answers),
        "wrong": wrong,
        "exits": exits,
    }


def _cpu_seconds(server: Server) -> float | None:
    try:
        return server.cpu_seconds()
    except FileNotFoundError:  # one of its processes has died
        return None


def busy_seconds() -> float:
    """CPU seconds of the whole machine so far, including time that a hypervisor took; /proc/stat has them in ticks."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def median(rows: list[Row]) -> Row:
    """One row for all rounds: medians of measurements, sums of counts, each round's speed."""
    whole: Row = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows if row[name] is not None]
        if isinstance(first, Counter):
            whole[name] = dict(sorted(sum(values, Counter[str]()).items()))
        elif name in COUNTS:
            whole[name] = sum(values)
        elif name in FIXED or not values:
            whole[name] = first
        else:
            whole[name] = round(statistics.median(values), 3)
    return {**whole, "rounds": [round(row["requests_per_second"], 1) for row in rows]}


def look(seen: Seen, right: list[Answer]) -> tuple[int, Counter[str]]:
    """How many of the sampled answers are wrong, and at which exit the images left."""
    wrong, exits = 0, Counter[str]()
    for request, body in zip(seen.asked, seen.answers, strict=True):
        document = json.loads(body)
        answer = document["results"][0] if "results" in document else document
        exits[str(answer["exit"])] += 1
        wrong += not _same(answer, right[request])
    return wrong, exits


def _same(answer: Answer, right: Answer) -> bool:
    near = bool(abs(answer["confidence"] - right["confidence"]) <= TOLERANCE)
    return near and all(answer[name] == right[name] for name in ("class_id", "exit"))


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


class Bare:
    """Measures a case's graphs in `process` (an executor of one), always in the way that was fastest the first time."""

    def __init__(self, process: Executor, seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self._best: dict[tuple[str, bool], Way] = {}

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """Images/s, without decoding and with it."""
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
    """Images/s of the graphs, over images that are decoded already or are decoded batch by batch."""
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
        for length in (BARE_WARM_SECONDS, seconds):
            start = time.perf_counter()
            done = sum(callers.map(call, [start + length] * way.callers))
            passed = time.perf_counter() - start
    return done * way.batch / passed


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@lru_cache
def _graphs(folder: Path, thresholds: tuple[float, ...], threads: int, spinning: bool) -> Graphs:
    return Graphs(folder, list(thresholds), threads, spinning)
