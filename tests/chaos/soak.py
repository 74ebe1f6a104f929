"""A service at 80 % of its capacity for long, with a reload after a third of the time and kills after two thirds:

    python -m tests.chaos.soak --minutes 30
    python -m tests.chaos.soak --minutes 2 -- --frontends 2 --engine process

What follows `--` are options of `msmlp serve`, `--frontends` first (2 without it). The capacity is measured first, in a
closed loop; then single pictures come at random times (Poisson), and each answer is compared with the offline one.
Prints a page, and writes the figures to build/soak.json; exit status 1 if an answer was wrong, a request hung or got
what it should not, or something was left over. Linux only.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.open_loop import open_loop
from msmlp.bench.generator import Load, Seen, closed_loop, offer, request_bytes
from msmlp.bench.images import thumbnails
from msmlp.bench.processes import family
from msmlp.service.settings import DEFAULT_WEIGHTS
from tests.chaos.harness import Target, serving
from tests.chaos.load import QUERY, Known, known_of
from tests.chaos.test_processes import victims
from tests.processes import Served

CAPACITY_SECONDS, CONNECTIONS, SHARE = 5.0, 32, 0.8
EVERY_SECONDS = 5.0
RELOAD, KILL = 1 / 3, 2 / 3
"""When, as shares of the time."""
SETTLE_SECONDS = 60.0
"""After the kills, left out, at most a third of the rest: memory that a new process takes once and keeps is no leak."""
LEAK_MIB_PER_MINUTE, LEAK_MIB = 1.0, 16.0
"""More than both, after that, is a leak."""

LATE_SECONDS = 5.0
"""How much longer than the load the answers may take."""

EXPECTED = {"200", "429"}
AT_A_KILL = {"503", "ConnectionResetError", "IncompleteReadError", "BrokenPipeError", "ConnectionRefusedError"}
"""What those get whose front end, or engine, is killed; IncompleteReadError where no byte of an answer came, too."""


@dataclass
class Checked(Seen):
    """Compares each answer; `at` are the times of those that were neither 200 nor 429."""

    known: Sequence[Known] = ()
    wrong: list[str] = field(default_factory=list)

    def note(self, request: int, status: str, body: bytes, latency: float) -> None:
        self.statuses[status] += 1
        if status == "200":
            self.latencies.append(latency)
            result = json.loads(body)["results"][0]
            if self.known[request % len(self.known)].differs(result):
                self.wrong.append(f"{result}")


class Watcher(threading.Thread):
    """Samples memory and descriptors, and makes things happen when it is time."""

    def __init__(self, served: Served, target: Target, seen: Checked, seconds: float) -> None:
        super().__init__(name="chaos-soak")
        self.samples: list[dict[str, float]] = []
        self.events: list[str] = []
        self._served, self._target, self._seen = served, target, seen
        self._seconds, self._end = seconds, threading.Event()
        self._due = [(RELOAD * seconds, self._reload), (KILL * seconds, self._kill)]

    def run(self) -> None:
        start = time.monotonic()
        while not self._end.wait(min(EVERY_SECONDS, self._seconds / 20)):
            now = time.monotonic() - start
            while self._due and self._due[0][0] <= now:
                self._due.pop(0)[1](now)
            self._sample(now)

    def _sample(self, now: float) -> None:
        try:
            pids = list(family(self._served.process.pid))
            pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
            descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
        except FileNotFoundError:  # one of them ends just now
            return
        rss = sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
        answered = self._seen.statuses["200"]
        row = {"seconds": round(now), "rss_mib": round(rss, 1), "descriptors": descriptors, "processes": len(pids)}
        self.samples.append({**row, "answered": answered})

    def _reload(self, now: float) -> None:
        self._served.process.send_signal(signal.SIGHUP)
        self.events.append(f"{now:.0f} s: reload")

    def _kill(self, now: float) -> None:
        for what in ("front end", "engine"):
            for pid in victims(self._target, what)[:1]:
                os.kill(pid, signal.SIGKILL)
                self.events.append(f"{now:.0f} s: {what} killed")

    def stop(self) -> None:
        self._end.set()
        self.join()


def soak(weights: Path, minutes: float, serve: Sequence[str]) -> dict[str, Any]:
    size = json.loads((weights / "manifest.json").read_text())["preprocess"]["size"]
    known = known_of(weights, [], *thumbnails(size))
    layout = serve if serve[:1] == ["--frontends"] else ("--frontends", "2", *serve)
    with tempfile.TemporaryDirectory() as folder, serving(weights, layout, Path(folder), limits=()) as served:
        target = Target(served, known, int(layout[1]), Path(folder))
        requests = tuple(request_bytes(served.url, f"/classify{QUERY}", each.file, "image/png") for each in known)
        # In an open loop, too, and comparing: on one machine the clients' work is part of what limits it.
        closed = offer(
            Load(served.url, requests, CONNECTIONS, CAPACITY_SECONDS),
            Checked(known=known),
            loop=partial(open_loop, rate=closed_rate(served.url, requests)),
        )
        capacity = closed.statuses["200"] / closed.seconds
        seen = Checked(known=known)
        watcher = Watcher(served, target, seen, 60 * minutes)
        watcher.start()
        load = Load(served.url, requests, 8 * CONNECTIONS, 60 * minutes)
        offer(load, seen, loop=partial(open_loop, rate=SHARE * capacity))
        watcher.stop()
        faults = _faults(seen, target)
        if seen.seconds > 60 * minutes + LATE_SECONDS:
            faults.append(f"it took {seen.seconds:.0f} s: the load was more than the capacity")
        reloads = served.metric('msmlp_reloads_total{outcome="done"}')
    memory = memory_growth([row for row in watcher.samples if row["seconds"] > 60 * minutes * KILL])
    if memory["slope_mib_per_minute"] > LEAK_MIB_PER_MINUTE and memory["growth_mib"] > LEAK_MIB:
        faults.append(f"memory grows by {memory['slope_mib_per_minute']:.2f} MiB per minute")
    if reloads != 1:
        faults.append(f"{reloads:g} reloads were done")
    p50, p99 = 1e3 * np.percentile(seen.latencies, (50, 99))
    return {
        "minutes": minutes,
        "serve": list(layout),
        "capacity_per_second": round(capacity, 1),
        "offered_per_second": round(SHARE * capacity, 1),
        "seconds": round(seen.seconds, 1),
        "outcomes": dict(seen.statuses.most_common()),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "events": watcher.events,
        "memory_after_the_kill": memory,
        "faults": faults,
        "samples": watcher.samples,
    }


def closed_rate(url: str, requests: tuple[bytes, ...]) -> float:
    seen = offer(Load(url, requests, CONNECTIONS, CAPACITY_SECONDS), loop=closed_loop)
    return seen.statuses["200"] / seen.seconds


def _faults(seen: Checked, target: Target) -> list[str]:
    faults = [f"{len(seen.wrong)} wrong answers, as {seen.wrong[0]}"] if seen.wrong else []
    odd = {name: count for name, count in seen.statuses.items() if name not in EXPECTED | AT_A_KILL}
    faults += [f"{count} x {name}" for name, count in odd.items()]
    try:
        target.check_settled()
    except AssertionError as error:
        faults.append(f"left over: {error}")
    if "Traceback" in target.served.log:
        faults.append("a traceback is in the log")
    return faults


def memory_growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """The line through the server's memory after it has settled: MiB per minute, and the growth from end to end."""
    times = np.array([sample["seconds"] - samples[0]["seconds"] for sample in samples])
    rss = np.array([sample["rss_mib"] for sample in samples])
    settled = times >= min(SETTLE_SECONDS, times[-1] / 3)
    slope = float(np.polyfit(times[settled] / 60, rss[settled], 1)[0]) if settled.sum() > 1 else 0.0
    span = float(np.ptp(times[settled])) / 60
    return {
        "settled_mib": float(rss[settled][0]),
        "last_mib": float(rss[-1]),
        "most_mib": float(rss.max()),
        "settled_minutes": span,
        "slope_mib_per_minute": slope,
        "growth_mib": slope * span,
    }


def page(figures: dict[str, Any]) -> str:
    every = max(1, len(figures["samples"]) // 12)
    rows = [
        "| {seconds} | {answered} | {rss_mib} | {descriptors} | {processes} |".format(**row)
        for row in figures["samples"][::every]
    ]
    outcomes = [f"| {name} | {count} |" for name, count in figures["outcomes"].items()]
    return "\n".join(
        (
            f"# Soak: {figures['minutes']:g} minutes, `msmlp serve {' '.join(figures['serve'])}`",
            "",
            f"{figures['offered_per_second']} requests/s, {SHARE:.0%} of {figures['capacity_per_second']}; "
            f"p50 {figures['p50_ms']} ms, p99 {figures['p99_ms']} ms. {'; '.join(figures['events'])}. "
            f"Faults: {'; '.join(figures['faults']) or 'none'}.",
            *("", "| outcome | requests |", "|---|---|", *outcomes),
            *("", "| seconds | answered | RSS, MiB | descriptors | processes |", "|---|---|---|---|---|", *rows, ""),
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"), help="where the figures go")
    parser.add_argument("serve", nargs="*", help="options of `msmlp serve`, after --")
    given = parser.parse_args()
    figures = soak(given.weights, given.minutes, given.serve)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(page(figures))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
