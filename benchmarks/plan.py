"""`msmlp plan` against the service that it simulates: one replica at a half, 80 % and 120 % of its capacity.

    python -m benchmarks.plan > build/plan.md

A server with one front end on one core, the load from another, requests at the times of a Poisson process. Each load is
measured `--repeats` times, and simulated with the times at which its requests were sent. Prints a table: throughput,
p50, exits and degraded images are to be within 15 % of measured (shares below a tenth: within 1.5 % of all images), p99
within the spread of the repeats. Takes about five minutes; keep the machine idle. Exit status 1 if something is not
within its bound. Linux only.
"""

import argparse
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.overload.__main__ import FULL, PATH, at_rest, closed_capacity, say, singles
from benchmarks.overload.load import LEAD, offer
from msmlp.bench.generator import Load
from msmlp.bench.http import SERVE
from msmlp.bench.images import thumbnails
from msmlp.bench.processes import server_process
from msmlp.model.offline import run_every_exit
from msmlp.model.preprocess import load_image
from msmlp.model.weights import load_calibration, load_weights
from msmlp.model.weights.calibration import Table
from msmlp.plan.costs import measure_costs
from msmlp.plan.fleet import Fleet, Summary, summary
from msmlp.plan.replica import Limits, Replica, Request
from msmlp.service.engine.core import warmed
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.service import plan_engine
from msmlp.service.settings import load_settings

LOADS = (0.5, 0.8, 1.2)
CONNECTIONS, WAITING = 256, 9_500
"""Below the capacity, and above it, where requests wait for seconds."""
BOUND = 0.15


@dataclass(frozen=True)
class Row:
    """What one run answered; latencies in milliseconds, shares of answered images."""

    images_per_second: float
    p50_ms: float
    p99_ms: float
    exit_share: tuple[float, ...]
    degraded: float
    refused: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=5, help="of each load")
    parser.add_argument("--loads", type=lambda text: [float(each) for each in text.split(",")], default=LOADS)
    parser.add_argument("--json", type=Path, default=Path("build/plan.json"), help="where the figures go")
    given = parser.parse_args()
    document = compared(given.seconds, given.repeats, given.loads)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(document, indent=1) + "\n")
    lines, well = table(document)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if well else 1


def compared(seconds: float, repeats: int, loads: Sequence[float]) -> dict[str, Any]:
    mine, theirs = sorted(os.sched_getaffinity(0))[:2]
    settings = load_settings(frontends=1, shadow=0)
    weights = load_weights(settings.weights)
    calibration = load_calibration(weights)
    os.sched_setaffinity(0, {theirs})  # costs are measured where the server runs
    costs = measure_costs(settings, weights, calibration, say)
    files = thumbnails(weights.manifest.preprocess.size)
    scores = _scores(settings, weights, calibration, files)
    words = ["-c", SERVE, "serve", "--port", "0", "--frontends", "1", "--shadow", "0", "--drain-seconds", "0"]
    measured: dict[float, list[Row]] = {load: [] for load in loads}
    sent: dict[float, list[list[float]]] = {load: [] for load in loads}
    with server_process("plan", words, say) as server:
        os.sched_setaffinity(0, {mine})
        requests = singles(server.url, files)
        capacity = closed_capacity(server.url, [each.replace(PATH, FULL, 1) for each in requests])
        say(f"{capacity:.0f} requests/s in a closed loop")
        for repeat in range(repeats):
            for load in loads:
                at_rest(server)
                before = _exits(server.url)
                seen = offer(
                    Load(server.url, requests, CONNECTIONS if load < 1 else WAITING, seconds),
                    load * capacity,
                    seed=repeat,
                    from_sending=True,
                )
                sent[load].append(seen.sent)
                exits = _exits(server.url) - before
                answered, refused = seen.count("200"), seen.count("429")
                measured[load].append(
                    Row(
                        images_per_second=answered / seen.took,
                        p50_ms=seen.percentile_ms("200", 50) or 0.0,
                        p99_ms=seen.percentile_ms("200", 99) or 0.0,
                        exit_share=tuple((exits / exits.sum()).tolist()),
                        degraded=seen.degraded / max(1, answered),
                        refused=refused / max(1, answered + refused),
                    )
                )
                say(f"{load:.0%}: {measured[load][-1]}")
    points = OperatingPoints(calibration, weights.manifest.gflops_cumulative, settings.policy)
    images = Table(scores, np.zeros(scores.shape, dtype=bool), np.array(weights.manifest.gflops_cumulative))
    limits = Limits(settings.max_wait_ms / 1e3, settings.brownout_ms / 1e3)
    simulated = {}
    for load in loads:
        found = []
        for repeat, times in enumerate(sent[load]):
            rng = np.random.default_rng(repeat)
            fleet = Fleet(lambda rng=rng: Replica(costs, images, points, limits, rng), 1, rng=rng)  # type: ignore[misc]
            outcome = fleet.run([Request(time, 1) for time in times], seconds)
            found.append(_row(summary(outcome, LEAD * seconds, seconds), summary(outcome, 0, seconds).exit_share))
        simulated[load] = found
        say(f"{load:.0%} simulated: {found[0]}")
    rows = [
        {"load": load, "measured": [*map(asdict, measured[load])], "simulated": [*map(asdict, simulated[load])]}
        for load in loads
    ]
    return {"capacity": capacity, "seconds": seconds, "costs": costs.model_dump(), "rows": rows}


def _row(seen: Summary, exits: tuple[float, ...]) -> Row:
    return Row(seen.images_per_second, seen.p50_ms or 0.0, seen.p99_ms or 0.0, exits, seen.degraded, seen.refused)


def _scores(settings: Any, weights: Any, calibration: Any, files: Sequence[bytes]) -> Any:
    """Of the pictures that are sent, at every exit."""
    backend, _ = warmed(plan_engine(settings, weights, calibration).selected[0][0].build)
    return run_every_exit(backend, np.stack([load_image(file, weights.manifest.views) for file in files])).scores


def _exits(url: str) -> Any:
    """Images that left at each exit so far."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    counts: dict[int, float] = {}
    for exit, value in re.findall(r'^msmlp_images_total\{.*?exit="(\d+)".*?\} (\S+)$', text, re.MULTILINE):
        counts[int(exit)] = counts.get(int(exit), 0.0) + float(value)
    return np.array([counts[exit] for exit in sorted(counts)])


def table(document: dict[str, Any]) -> tuple[list[str], bool]:
    """The page's lines, and whether everything is within its bound."""
    lines = [
        f"Capacity {document['capacity']:.0f} requests/s in a closed loop; runs of {document['seconds']:g} s.",
        "",
        "| load | | measured (median; least to largest) | simulated | within the bound |",
        "|---|---|---|---|---|",
    ]
    well = True
    for row in document["rows"]:
        for name in ("images_per_second", "p50_ms", "p99_ms", "exit 1", "exit 2", "exit 3", "degraded", "refused"):
            measured, simulated = (_values(row[kind], name) for kind in ("measured", "simulated"))
            ours, theirs = statistics.median(simulated), statistics.median(measured)
            if name == "p99_ms":
                within = min(measured) <= ours <= max(measured)
            else:
                within = abs(ours - theirs) <= BOUND * (theirs if name.endswith(("second", "ms")) else max(theirs, 0.1))
            well &= within
            spread = f"{theirs:.4g} ({min(measured):.4g} to {max(measured):.4g})"
            lines.append(f"| {row['load']:.0%} | {name} | {spread} | {ours:.4g} | {'yes' if within else 'no'} |")
    return lines, well


def _values(rows: list[dict[str, Any]], name: str) -> list[float]:
    if name.startswith("exit "):
        return [row["exit_share"][int(name[5:]) - 1] for row in rows]
    return [row[name] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
