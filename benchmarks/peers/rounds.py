"""The measurement: within each round every server takes its turn at every load; medians over the rounds are told."""

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.servers import Case, pause, resume
from benchmarks.peers.truth import look
from msmlp.bench.generator import Load, Seen, request_bytes
from msmlp.bench.processes import Server

WARM_SECONDS = 0.3
TUNED_AT = 32
"""Connections at which settings are chosen, and bare ONNX Runtime is measured beside the servers."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A server that is up, paused, and what it is asked."""

    case: Case
    server: Server

    def load(self, connections: int, seconds: float) -> Load:
        """Its images one a request, in turn."""
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
    """A row for each case, server and number of connections; those of bare ONNX Runtime have none (`None`)."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for number in range(rounds):
        for case, count in _loads(entries, connections):
            rows = bare(case) if count == nearest(connections) else []
            mine = [entry for entry in entries if entry.case is case]
            first = number % len(mine)  # nobody always follows the same one
            rows += [_run(entry, count, seconds, send) for entry in mine[first:] + mine[:first]]
            for row in rows:
                found.setdefault((row["case"], row["server"], row["connections"]), []).append(row)
            told = ", ".join(f"{row['server']} {row['requests_per_second']:.0f}" for row in rows)
            say(f"round {number + 1} of {rounds}, {case.name}, {count} connections: {told} requests/s")
    return [median(rows) for rows in found.values()]


def nearest(connections: tuple[int, ...]) -> int:
    """The number of connections that is compared with bare ONNX Runtime."""
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
    except FileNotFoundError:  # a process of it has died
        return None


def busy_seconds() -> float:
    """CPU time of the whole machine so far, what a hypervisor took away included; /proc/stat has it in ticks."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


FIXED, COUNTS = ("case", "server", "connections", "way"), ("looked_at", "wrong")


def median(rows: list[Row]) -> Row:
    """Rounds of one run in one row: medians of what was measured, sums of what was counted, each round's speed."""
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
