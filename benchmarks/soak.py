"""A real server under 80 % load for minutes: memory stays flat, every request is answered, every permit is returned.

    python -m benchmarks.soak --minutes 10 -- --weights weights/cifar10-s
    python -m benchmarks.soak --minutes 1 -- --engine process

What follows `--` are options of `msmlp serve`. The server's capacity is measured first, in a closed loop; then requests
of 1 to 64 images arrive at random times (Poisson) while its memory and gauges are sampled. Prints one JSON document;
exit status 1 when something was wrong. Linux only: memory is read from /proc.
"""

import argparse
import json
import re
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.open_loop import open_loop
from msmlp.bench.generator import Load, Seen, offer, request_bytes
from msmlp.bench.images import form_bytes, thumbnails
from msmlp.bench.load import SIZES
from msmlp.bench.processes import Server, family, image_size, server_process

CAPACITY_SECONDS = 10.0
CAPACITY_CONNECTIONS, OPEN_CONNECTIONS = 8, 256
SETTLE_SECONDS = 60.0
"""Left out at the start, at most a third of the run: memory that the server takes once and keeps is not a leak."""
LEAK_MIB_PER_MINUTE, LEAK_MIB, LEAK_MINUTES = 1.0, 8.0, 2.0
"""Growth above the first two is a leak. In less time than the third, it may be a new peak of what is in flight."""
DRAIN_SECONDS = 30.0
GAUGES = {"inflight": "msmlp_inflight_images", "queue": "msmlp_queue_images", "brownout": "msmlp_brownout_level"}
ANSWERED = {"200", "429"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity measured in a closed loop")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two samples")
    parser.add_argument("serve", nargs="*", help="options of `msmlp serve`, after --")
    document = soak(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return 0 if document["ok"] else 1


def soak(
    serve: list[str], minutes: float, load: float, every: float, capacity_seconds: float = CAPACITY_SECONDS
) -> dict[str, Any]:
    arguments = ["-c", "from msmlp.main import main; main()", "serve", "--port", "0", *serve]
    with server_process("soak", arguments, _say) as server:
        requests, images = _requests(server.url)
        closed = offer(Load(server.url, requests, CAPACITY_CONNECTIONS, capacity_seconds))
        rate = load * closed.statuses["200"] / closed.seconds
        _say(f"offering {rate:.1f} requests/s of {images:.1f} images for {minutes:g} minutes")
        watcher = _Watcher(server, every)
        watcher.start()
        offered = Load(server.url, requests, OPEN_CONNECTIONS, 60 * minutes)
        seen = offer(offered, loop=partial(open_loop, rate=rate))
        watcher.stop()
        left = _drained(server.url)
    memory = memory_growth(watcher.samples)
    faults = _faults(seen, left, memory)
    return {
        "minutes": minutes,
        "load": load,
        "serve": serve,
        "requests_per_second": rate,
        "images_per_second": rate * images,
        "requests": sum(seen.statuses.values()),
        "statuses": dict(seen.statuses),
        "p50_p95_p99_ms": seen.percentiles_ms().tolist() if seen.latencies else None,
        "memory": memory,
        "at_the_end": left,
        "faults": faults,
        "ok": not faults,
        "samples": watcher.samples,
    }


def _faults(seen: Seen, left: dict[str, float], memory: dict[str, float]) -> list[str]:
    wrong = {status: count for status, count in seen.statuses.items() if status not in ANSWERED}
    faults = [f"{count} requests ended with {status}" for status, count in wrong.items()]
    faults += [f"{name} is {value:g} at the end" for name, value in left.items() if value and name != "brownout"]
    leaks = memory["slope_mib_per_minute"] > LEAK_MIB_PER_MINUTE and memory["growth_mib"] > LEAK_MIB
    if leaks and memory["settled_minutes"] >= LEAK_MINUTES:
        faults.append(f"memory grows by {memory['slope_mib_per_minute']:.2f} MiB per minute")
    return faults


def memory_growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """The line through the server's memory after it has settled: MiB per minute, and the growth from end to end."""
    times = np.array([sample["seconds"] for sample in samples])
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


class _Watcher(threading.Thread):
    """Samples a server's memory and gauges while the load runs."""

    def __init__(self, server: Server, every: float) -> None:
        super().__init__(name="soak-watcher")
        self.samples: list[dict[str, float]] = []
        self._server, self._every, self._end = server, every, threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while True:
            sample = {"seconds": time.monotonic() - start, "rss_mib": _rss_mib(self._server)}
            sample |= _gauges(self._server.url)
            self.samples.append({name: round(value, 3) for name, value in sample.items()})
            if self._end.wait(self._every):
                return

    def stop(self) -> None:
        """Wait for the last sample too."""
        self._end.set()
        self.join()


def _rss_mib(server: Server) -> float:
    """Resident memory of the server and its processes; memory that they share counts once for each."""
    assert server.process is not None
    total = 0
    for pid in family(server.process):
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


def _gauges(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return {
        name: sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        for name, metric in GAUGES.items()
    }


def _drained(url: str) -> dict[str, float]:
    """The gauges when nothing is in flight any more, or after DRAIN_SECONDS."""
    until = time.monotonic() + DRAIN_SECONDS
    while (gauges := _gauges(url))["inflight"] + gauges["queue"] and time.monotonic() < until:
        time.sleep(0.1)
    return gauges


def _requests(url: str) -> tuple[tuple[bytes, ...], float]:
    """Forms of 1 to 64 images in mixed order, and the mean number of images."""
    files, requests = thumbnails(image_size(url)), []
    sizes = np.random.default_rng(0).permutation(np.tile(SIZES, 4)).tolist()
    for number, size in enumerate(sizes):
        content, kind = form_bytes([files[(number + n) % len(files)] for n in range(size)])
        requests.append(request_bytes(url, "/classify", content, kind))
    return tuple(requests), sum(sizes) / len(sizes)


def _say(line: str) -> None:
    sys.stderr.write(f"soak: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
