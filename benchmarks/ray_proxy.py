"""What Ray's proxy costs beside the bare service, and what the ways around it cost: `python -m benchmarks.ray_proxy`.

One replica with one core, behind Ray's HTTP proxy and then behind its HAProxy, and each time by its own port, beside
`msmlp serve` with one front end. The servers take turns within each round, with the same small pictures from the same
generator, so that what disturbs the machine disturbs all. Needs the extras cpu, serve and ray.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import httpx

from msmlp.bench.generator import Load, offer
from msmlp.bench.images import requests, thumbnails
from msmlp.bench.processes import image_size, is_ready, server_process
from msmlp.model.errors import DeviceError

START_SECONDS = 120
BARE, PROXY, HAPROXY, DIRECT = "msmlp serve", "Ray's proxy", "Ray's HAProxy", "a replica's own port"
SETTINGS = ("--capacity", "1024", "--max-wait-ms", "0", "--brownout-ms", "0", "--drain-seconds", "0")
"""Shedding and brown-out would make the servers incomparable."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def on_ray(say: Callable[[str], None], *, haproxy: bool) -> Iterator[str]:
    """The service with one replica on a cluster of its own → its proxy's URL."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)), "RAY_USAGE_STATS_ENABLED": "0"}
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        port = free_port()
        command = [sys.executable, "-m", "msmlp", "deploy", "ray", "--address", cluster.address, "--port", str(port)]
        subprocess.run([*command, "--direct-port", "0", *SETTINGS], check=True, timeout=START_SECONDS)
        url = f"http://127.0.0.1:{port}"
        while not is_ready(url):
            time.sleep(0.1)
        say(f"started Ray on {url}")
        yield url
    finally:
        cluster.shutdown()


def measure(servers: dict[str, str], connections: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """A row per server: medians over the rounds, and how each compares with the bare service in the same round."""
    size = image_size(servers[BARE])
    sent = {name: requests(url, "image", thumbnails(size), size) for name, url in servers.items()}
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in servers}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as generator:
        for number in range(-1, rounds):  # the first to warm up
            for name, url in servers.items():
                load = Load(url, sent[name], connections, seconds if number >= 0 else 1.0)
                got = generator.submit(offer, load).result()
                if set(got.statuses) != {"200"}:
                    raise DeviceError(f"{name} answers {dict(got.statuses)}")
                p50, _, p99 = got.percentiles_ms()
                if number >= 0:
                    seen[name].append((len(got.latencies) / got.seconds, float(p50), float(p99)))
    return [_row(name, connections, rows, seen[BARE]) for name, rows in seen.items()]


def _row(name: str, connections: int, rows: list[Any], bare: list[Any]) -> dict[str, Any]:
    names = "requests_per_second", "p50_ms", "p99_ms"
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    ratios = [
        statistics.median(mine / theirs for mine, theirs in zip(*columns, strict=True))
        for columns in zip(zip(*rows, strict=True), zip(*bare, strict=True), strict=True)
    ]
    return {
        "server": name,
        "connections": connections,
        **{key: round(value, 2) for key, value in zip(names, medians, strict=True)},
        **{f"{key}_ratio": round(value, 3) for key, value in zip(names, ratios, strict=True)},
    }


def _session(haproxy: bool, options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The bare service and a cluster with one of Ray's proxies; an idle one of the other kind would take time too."""
    with ExitStack() as stack:
        arguments = ["-m", "msmlp", "serve", "--port", "0", "--frontends", "1", *SETTINGS]
        bare = stack.enter_context(server_process("bare", arguments, say))
        proxy = stack.enter_context(on_ray(say, haproxy=haproxy))
        [direct] = httpx.get(f"{proxy}/replicas", timeout=START_SECONDS).json()["replicas"]
        servers = {BARE: bare.url, HAPROXY if haproxy else PROXY: proxy, DIRECT: direct}
        numbers = [int(each) for each in options.connections.split(",")]
        return [row for number in numbers for row in measure(servers, number, options.seconds, options.rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_proxy", description=__doc__)
    parser.add_argument("--connections", default="1,8,32", help="numbers of connections (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are printed (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    rows = [row for haproxy in (False, True) for row in _session(haproxy, options, say)]
    document = {"ray": version("ray"), "cores": os.cpu_count(), "rounds": options.rounds, "load": rows}
    if options.json:
        print(json.dumps(document, indent=1))
        return
    print(f"Ray {document['ray']}, {document['cores']} cores; medians of {options.rounds} rounds, ratios to {BARE}")
    for row in rows:
        speed = f"{row['requests_per_second']:8.0f}/s ({row['requests_per_second_ratio']:.2f})"
        times = ", ".join(f"{p} {row[f'{p}_ms']:7.2f} ms ({row[f'{p}_ms_ratio']:.2f})" for p in ("p50", "p99"))
        print(f"{row['connections']:4} connections  {row['server']:22} {speed}, {times}")


if __name__ == "__main__":
    main()
