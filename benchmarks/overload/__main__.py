"""An open-loop sweep from a tenth to three times of what the service can do, and two minutes of overload.

    python -m benchmarks.overload > benchmarks/overload/README.md

The server has one core, the load another. Measures in about eight minutes; `--seconds` of each load and
`--overload-seconds` shorten it. Prints the page; exit status 1 when an answer is neither 200 nor 429 or something stays
behind. Linux only.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.overload.load import Seen, offer
from benchmarks.overload.page import page
from benchmarks.peers.pictures import photographs
from msmlp.bench.generator import Load, closed_loop, request_bytes
from msmlp.bench.generator import offer as offer_closed
from msmlp.bench.http import SERVE
from msmlp.bench.images import form_bytes
from msmlp.bench.processes import Server, family, image_size, server_process
from msmlp.service.settings import Settings

LOADS = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
PICTURES, FORM_IMAGES, FORMS = 256, 16, 32
SINGLE, FORM = "single pictures", "forms of 16"
CAPACITY_SECONDS, CAPACITY_CONNECTIONS = 5.0, 32
CONNECTIONS = 9_500
PATH, FULL = b"POST /classify ", b"POST /classify?degrade=false "
"""As they are sent, and as they are sent to measure the capacity: without brown-out."""
OVERLOAD = 4.0
"""Of the capacity, at the end: above what brown-out can make of it."""
ROUNDS = 4
"""Of it: the engine's memory for images is touched as more of them are in flight at once, and then stays."""
SETTLE_SECONDS = 3.0
HELD = ("msmlp_inflight_images", "msmlp_queue_images", "msmlp_body_work", "msmlp_brownout_level")
"""Gauges that must be back at their start."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--overload-seconds", type=float, default=120.0, help="of the overload at the end")
    parser.add_argument("--kind", action="append", choices=(SINGLE, FORM), help="only this one")
    parser.add_argument("--loads", type=lambda text: [float(each) for each in text.split(",")], default=LOADS)
    parser.add_argument("--json", type=Path, default=Path("build/overload.json"), help="where the figures go")
    parser.add_argument("--page", type=Path, metavar="FILE", help="measure nothing: the page of such a file")
    parser.add_argument("serve", nargs="*", help="options of `msmlp serve`, after --")
    given = parser.parse_args()
    if given.page:
        document = json.loads(given.page.read_text())
    else:
        document = measured(
            given.seconds, given.overload_seconds, given.kind or [SINGLE, FORM], given.loads, given.serve
        )
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(page(document))
    return 1 if document["faults"] else 0


def measured(
    seconds: float, overload_seconds: float, kinds: Sequence[str], loads: Sequence[float], serve: Sequence[str]
) -> dict[str, Any]:
    mine, theirs = sorted(os.sched_getaffinity(0))[:2]
    load_before = os.getloadavg()[0]
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        del os.environ[name]
    os.sched_setaffinity(0, {theirs})  # which the server inherits
    rows, faults = list[dict[str, Any]](), list[str]()
    with server_process("overload", ["-c", SERVE, "serve", "--port", "0", *serve], say) as server:
        os.sched_setaffinity(0, {mine})
        files = photographs(PICTURES, image_size(server.url))
        requests = {SINGLE: singles(server.url, files), FORM: forms(server.url, files)}
        start = at_rest(server)
        for kind in kinds:
            at_rest(server)
            capacity = closed_capacity(server.url, [each.replace(PATH, FULL, 1) for each in requests[kind]])
            say(f"{kind}: {capacity:.0f} requests/s in a closed loop")
            for number, load in enumerate(loads):
                at_rest(server)
                offered = Load(server.url, requests[kind], CONNECTIONS, seconds)
                seen = offer(offered, load * capacity, seed=number)
                rows.append({"kind": kind, "capacity": capacity, "load": load, **figures(seen)})
                say(str({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}))
        if overload_seconds:
            sent, rate = requests[rows[-1]["kind"]], OVERLOAD * rows[-1]["capacity"]
            rests = [start]
            for _ in range(ROUNDS):
                offer(Load(server.url, sent, CONNECTIONS, overload_seconds / ROUNDS), rate)
                rests.append(at_rest(server))
            faults += left_behind(rests)
            rows.append({"kind": "overload", "rests": rests})
    faults += [
        f"{row['kind']} at {row['load']:.0%}: {count} x {status}"
        for row in rows
        if "statuses" in row
        for status, count in row["statuses"].items()
        if count and status not in ("200", "429")
    ]
    machine = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "machine": machine[1] if machine else "",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load_average_before": load_before,
        "seconds": seconds,
        "overload_seconds": overload_seconds,
        "max_wait_ms": Settings.model_fields["max_wait_ms"].default,
        "rows": rows,
        "faults": faults,
    }


def singles(url: str, files: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(request_bytes(url, "/classify", file, "application/octet-stream") for file in files)


def forms(url: str, files: Sequence[bytes]) -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    chosen = [form_bytes([files[place] for place in rng.integers(0, len(files), FORM_IMAGES)]) for _ in range(FORMS)]
    return tuple(request_bytes(url, "/classify", content, kind) for content, kind in chosen)


def closed_capacity(url: str, requests: Sequence[bytes]) -> float:
    """Requests per second that a closed loop gets answered with 200."""
    load = Load(url, tuple(requests), CAPACITY_CONNECTIONS, CAPACITY_SECONDS)
    offer_closed(load, loop=closed_loop)  # warm
    seen = offer_closed(load)
    return seen.statuses["200"] / seen.seconds


def figures(seen: Seen) -> dict[str, Any]:
    answered, refused = seen.count("200"), seen.count("429")
    everything = sum(map(len, seen.seconds.values()))
    return {
        "goodput": answered / seen.took,
        "p50_ms": seen.percentile_ms("200", 50),
        "p99_ms": seen.percentile_ms("200", 99),
        "refusal_p99_ms": seen.percentile_ms("429", 99),
        "degraded": seen.degraded / max(1, answered),
        "shed": refused / max(1, everything),
        "sent_late_p99_ms": 1e3 * float(np.percentile(seen.late, 99)),
        "retry_after": dict(sorted(seen.retry_after.items())),
        "statuses": dict(Counter({status: len(found) for status, found in seen.seconds.items()})),
    }


def at_rest(server: Server) -> dict[str, float]:
    """The server's memory and gauges, once nothing is in flight and it had a moment."""
    assert server.process is not None
    until = time.monotonic() + 60
    while time.monotonic() < until and any(gauges(server.url).values()):
        time.sleep(0.2)
    time.sleep(SETTLE_SECONDS)
    status = [Path(f"/proc/{pid}/status").read_text() for pid in family(server.process)]
    rss = sum(int(found[1]) for each in status if (found := re.search(r"VmRSS:\s+(\d+) kB", each))) / 1024
    sockets = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in family(server.process))
    return {"rss_mib": rss, "descriptors": sockets, **gauges(server.url)}


def gauges(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return {
        name: sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        for name in HELD
    }


def left_behind(rests: Sequence[dict[str, float]]) -> list[str]:
    """Gauges and descriptors above the start, and memory that still grew in the last round (8 MiB are noise)."""
    start, before, after = rests[0], rests[-2], rests[-1]
    faults = [f"{name} is {after[name]:g} at the end" for name in (*HELD, "descriptors") if after[name] > start[name]]
    if after["rss_mib"] > before["rss_mib"] + 8:
        faults.append(f"memory grew from {before['rss_mib']:.0f} to {after['rss_mib']:.0f} MiB")
    return faults


def say(line: str) -> None:
    sys.stderr.write(f"overload: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
