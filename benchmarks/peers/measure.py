"""The measurement: in each round every server takes its turn at every load. Every answer is looked at.

Each turn is one *run*, a row of figures; `medians` makes one row of all rounds.
"""

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.bare import Bare, Costs, batch_key
from benchmarks.peers.programs import Answer
from benchmarks.peers.servers import KEY, OURS_KEYED, Case, pause, resume
from msmlp.bench.generator import Load, Seen, request_bytes
from msmlp.bench.processes import Server, family

WARM_SECONDS = 0.25
TUNED_AT = 32
"""Connections at which settings are chosen, and bare ONNX Runtime takes its turn."""
TOLERANCE = 1e-6
"""How far a confidence may be off: batches of another size round differently. The confidences of two images differ by
more, so an answer to another image is noticed."""
FIXED, COUNTS = ("case", "server", "connections", "way"), ("looked_at", "wrong", "degraded")
Row = dict[str, Any]
Send = Callable[[Load, Seen], Seen]


@dataclass(frozen=True)
class Entry:
    """A server that is up and paused, and what is requested of it; `batches`: it does not say how it batches."""

    case: Case
    server: Server
    batches: bool = False

    def load(self, connections: int, seconds: float) -> Load:
        """One image per request, cycling through them."""
        path = self.case.path(self.server.name)
        url, keys = self.server.url, {"Authorization": f"Bearer {KEY}"} if self.server.name == OURS_KEYED else {}
        sent = (request_bytes(url, path, file, "application/octet-stream", **keys) for file in self.case.files)
        return Load(url, tuple(sent), connections, seconds)


def measure(
    entries: list[Entry],
    connections: tuple[int, ...],
    rounds: int,
    seconds: float,
    send: Send,
    bare: Bare,
    say: Callable[[str], None],
) -> Iterator[list[Row]]:
    """The runs, as they are made: those of one round, case and number of connections together.

    The bounds without a server have `None` connections, and take their turn with one of the loads.
    """
    for number in range(rounds):
        for case in {entry.case.name: entry.case for entry in entries}.values():
            mine = [entry for entry in entries if entry.case is case]
            first = number % len(mine)  # so that no server always runs after the same one
            costs = bare.costs(case)
            for count in connections:
                rows = bare.rows(case) if count == nearest(connections) else []
                rows += [_run(entry, count, seconds, send, costs) for entry in mine[first:] + mine[:first]]
                told = ", ".join(f"{row['server']} {row['requests_per_second']:.0f}" for row in rows)
                say(f"round {number + 1} of {rounds}, {case.name}, {count} connections: {told} requests/s")
                yield [{"round": number, **row} for row in rows]


def nearest(connections: tuple[int, ...]) -> int:
    """The number of connections at which bare ONNX Runtime is measured too."""
    return min(connections, key=lambda count: abs(count - TUNED_AT))


def _run(entry: Entry, connections: int, seconds: float, send: Send, costs: Costs) -> Row:
    server = entry.server
    resume(server)
    try:
        send(entry.load(connections, WARM_SECONDS), Seen())
        before, busy = _cpu_seconds(server), busy_seconds()
        seen = send(entry.load(connections, seconds), Seen(every=1, most=sys.maxsize))
        after, busy = _cpu_seconds(server), busy_seconds() - busy
    finally:
        pause(server)
    answered, processes = len(seen.latencies), len(list(family(server.process or 0)))
    spent = after - before if before is not None and after is not None else None
    looks = look(seen, list(entry.case.right), says_batches=not entry.batches)
    each = 1e3 * spent / answered if spent is not None and answered else None  # ms
    compute = 1e3 * costs.of(looks.batches) / len(seen.answers) if looks.batches else None
    p50, _, p99 = seen.percentiles_ms().tolist() if answered else [None] * 3
    return {
        "case": entry.case.name,
        "server": server.name,
        "connections": connections,
        "processes": processes,
        "requests_per_second": answered / seen.seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "server_cpu_seconds_per_1000": each,
        "compute_seconds_per_1000": compute,
        "outside_seconds_per_1000": each - compute if each is not None and compute is not None else None,
        "generator_cpu": seen.cpu / seen.seconds,
        "others_cpu": max(0.0, busy - spent - seen.cpu) / seen.seconds if spent is not None else None,
        "statuses": seen.statuses,
        "looked_at": len(seen.answers),
        "wrong": looks.wrong,
        "degraded": looks.degraded,
        "exits": looks.exits,
        "batches": looks.batches,
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


def medians(runs: list[Row]) -> list[Row]:
    """One row per case, server and number of connections."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        found.setdefault((run["case"], run["server"], run["connections"]), []).append(run)
    return [median(rows) for rows in found.values()]


def median(rows: list[Row]) -> Row:
    """One row for all rounds: medians of measurements, sums of counts, each round's speed."""
    whole: Row = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows if row[name] is not None]
        if name == "round":
            continue
        if isinstance(first, dict):
            whole[name] = dict(sorted(sum(map(Counter, values), Counter[str]()).items()))
        elif name in COUNTS:
            whole[name] = sum(values)
        elif name in FIXED or not values:
            whole[name] = first
        else:
            whole[name] = round(statistics.median(values), 3)
    return {**whole, "rounds": [round(row["requests_per_second"], 1) for row in rows]}


@dataclass
class Looks:
    """What was seen in answers; `batches` counts images by `batch_key`, and is empty where a server does not say."""

    wrong: int = 0
    degraded: int = 0
    exits: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)


def look(seen: Seen, right: list[Answer], *, says_batches: bool = True) -> Looks:
    """Compare every answer that was kept with the right one. A server without a word on batches ran every image alone,
    unless it is known not to (`says_batches`)."""
    looks = Looks()
    for request, body in zip(seen.asked, seen.answers, strict=True):
        document = json.loads(body)
        answer = document["results"][0] if "results" in document else document
        looks.exits[str(answer["exit"])] += 1
        looks.wrong += not _same(answer, right[request])
        looks.degraded += bool(answer.get("degraded"))
        if says_batches:
            stages = answer.get("stages") or [{"batch_size": 1}] * (answer["exit"] or 0)
            looks.batches.update(batch_key(k, stage["batch_size"]) for k, stage in enumerate(stages, 1))
    return looks


def _same(answer: Answer, right: Answer) -> bool:
    confidence = answer["confidence"]  # None: expired before the first exit
    near = confidence is not None and bool(abs(confidence - right["confidence"]) <= TOLERANCE)
    return near and all(answer[name] == right[name] for name in ("class_id", "exit"))
