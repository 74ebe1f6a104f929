"""`msmlp bench http`: servers over real sockets, with their device and without one, in one run."""

import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from msmlp.bench.generator import Load, Seen, offer
from msmlp.bench.images import IMAGES_OF, TENSOR, exits_of, requests, thumbnails
from msmlp.bench.processes import Server, image_size, server_process
from msmlp.model.errors import DeviceError, MsmlpError
from msmlp.model.report.text import percent

SERVE = "from msmlp.main import main; main()"
WARM_SECONDS = 0.5
OPEN_CONNECTIONS = 256
TENSOR_CONNECTIONS = 2
"""At most: one is read while the other runs, and more would wait longer than a server lets them."""
Row = dict[str, Any]
Case = tuple[Server, str, int, float | None]
"""A server, the kind of body, connections, and requests per second in an open loop."""


@dataclass(frozen=True)
class HttpOptions:
    """What to measure: the service at `url`, or without one two servers started with `weights` (None: the default).

    `files` are encoded images (none: thumbnails of a photograph). `rates` are open loops: requests per second, or a
    share of the closed loop's best, as `80%`. Each run lasts `seconds`; the result has medians over `rounds`.
    """

    url: str | None = None
    weights: Path | None = None
    files: tuple[bytes, ...] = ()
    connections: tuple[int, ...] = (1, 8, 32, 128)
    rates: tuple[str, ...] = ("50%", "80%")
    bodies: tuple[str, ...] = tuple(IMAGES_OF)
    seconds: float = 2.0
    rounds: int = 3

    def connections_of(self, body: str) -> list[int]:
        return sorted({min(count, TENSOR_CONNECTIONS) if body == TENSOR else count for count in self.connections})


def bench_http(options: HttpOptions, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure. Servers take turns within each round, so that what disturbs the machine disturbs all.

    The load comes from a process of its own, whose CPU time is in each row: near 1 it is the generator that is
    measured.

    Raises:
        MsmlpError: no service at the URL, or none that is ready; a server that did not start.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack, ProcessPoolExecutor(1, mp_context=context) as generator:
        servers = list(_servers(options, progress, stack))
        runs = _Runs(options, servers, progress, lambda load: generator.submit(offer, load).result())
        closed = runs.closed_loops()
        opened = runs.open_loops(closed)
    return {
        "url": options.url,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load": closed + opened,
        "ratios": _ratios(closed),
    }


def _servers(options: HttpOptions, progress: Callable[[str], None], stack: ExitStack) -> Iterator[Server]:
    if options.url is not None:
        yield _running(options.url.rstrip("/"))
        return
    # Shedding would make the servers incomparable: there is room for all that the closed loops send at once.
    most = max(IMAGES_OF[body] * max(options.connections_of(body)) for body in options.bodies)
    arguments = [f"--capacity={max(1024, most)}", "--port=0", "--host=127.0.0.1"]
    arguments += [] if options.weights is None else [f"--weights={options.weights}"]
    for name, program in {"real": ["-c", SERVE, "serve"], "null": ["-m", "msmlp.bench.null_server"]}.items():
        yield stack.enter_context(server_process(name, [*program, *arguments], progress))


def _running(url: str) -> Server:
    try:
        status = httpx.get(f"{url}/readyz", timeout=10).status_code
    except httpx.HTTPError:
        raise MsmlpError(f"nothing answers at {url}; start it with msmlp serve, or leave out --url") from None
    if status != HTTPStatus.OK:
        raise DeviceError(f"the service at {url} is not ready (status {status})")
    return Server("service", url, None)


class _Runs:
    """Every server with every load, in turn within each round."""

    def __init__(
        self,
        options: HttpOptions,
        servers: list[Server],
        progress: Callable[[str], None],
        send: Callable[[Load], Seen],
    ) -> None:
        self._options, self._servers, self._progress, self._send = options, servers, progress, send
        size = image_size(servers[0].url)
        files = list(options.files) or thumbnails(size)
        self._requests = {
            (server, body): requests(server.url, body, files, size) for server in servers for body in options.bodies
        }
        for (server, _), sent in self._requests.items():
            send(Load(server.url, sent, 8, WARM_SECONDS))

    def closed_loops(self) -> list[Row]:
        cases = [(body, count) for body in self._options.bodies for count in self._options.connections_of(body)]
        return self._measure([(server, *case, None) for case in cases for server in self._servers])

    def open_loops(self, closed: list[Row]) -> list[Row]:
        """Requests at given rates; a share is of the most that the same server took of the same body."""
        cases: list[Case] = []
        for body in self._options.bodies:
            for text in self._options.rates:
                for server in self._servers:
                    rows = [row for row in closed if (row["server"], row["body"]) == (server.name, body)]
                    best = max(row["requests_per_second"] for row in rows)
                    rate = best * float(text[:-1]) / 100 if text.endswith("%") else float(text)
                    if rate > 0:
                        cases.append((server, body, OPEN_CONNECTIONS, rate))
        return self._measure(cases)

    def _measure(self, cases: list[Case]) -> list[Row]:
        runs: list[list[Row]] = [[] for _ in cases]
        for seed in range(self._options.rounds):
            for case, rows in zip(cases, runs, strict=True):
                server, body, count, rate = case
                how = f"{count} connections" if rate is None else f"{rate:.0f} requests/s"
                self._progress(f"round {seed + 1} of {self._options.rounds}: {server.name}, {body}, {how}")
                rows.append(self._run(case, seed))
        return [_median(rows) for rows in runs]

    def _run(self, case: Case, seed: int) -> Row:
        server, body, connections, rate = case
        before = server.cpu_seconds()
        load = Load(server.url, self._requests[server, body], connections, self._options.seconds, rate, seed)
        seen = self._send(load)
        after, answered = server.cpu_seconds(), len(seen.latencies)
        spent = None if before is None or after is None or not answered else 1e3 * (after - before) / answered
        percentiles = seen.percentiles_ms().tolist() if answered else [None] * 3
        return {
            "server": server.name,
            "body": body,
            "loop": "closed" if rate is None else "open",
            "connections": connections,
            "offered_per_second": rate,
            "requests_per_second": answered / seen.seconds,
            "images_per_second": answered * IMAGES_OF[body] / seen.seconds,
            **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
            "server_cpu_seconds_per_1000": spent,
            "generator_cpu": seen.cpu / seen.seconds,
            "statuses": seen.statuses,
            "exits": sum((exits_of(body, answer) for answer in seen.answers), Counter[str]()),
        }


def _median(rows: list[Row]) -> Row:
    """The rounds of one case as one row: medians of numbers, sums of counts, shares of exits."""
    whole: Row = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows if row[name] is not None]
        if isinstance(first, Counter):
            whole[name] = dict(sum(values, Counter()))
        elif isinstance(first, str | int) or not values:
            whole[name] = first
        else:
            whole[name] = round(statistics.median(values), 3)
    exits = whole.pop("exits")
    return {**whole, "exit_share": {exit: round(n / sum(exits.values()), 4) for exit, n in sorted(exits.items())}}


def _ratios(closed: list[Row]) -> list[Row]:
    """What share of the requests per second that it takes without a device the service reaches with it."""
    speed = {(row["server"], row["body"], row["connections"]): row["requests_per_second"] for row in closed}
    return [
        {"body": body, "connections": count, "real_over_null": round(real / speed["null", body, count], 3)}
        for (server, body, count), real in speed.items()
        if server == "real" and speed["null", body, count]
    ]


def http_lines(result: dict[str, Any]) -> Iterator[str]:
    for row in result["load"]:
        at = f"{row['connections']} connections" if row["loop"] == "closed" else f"{row['offered_per_second']:.0f}/s"
        latency = ", ".join(f"{p} {_unit(row[f'{p}_ms'], 'ms')}" for p in ("p50", "p95", "p99"))
        yield (
            f"{row['server']:9} {row['body']:12} {at:15} {row['requests_per_second']:8.1f} requests/s, {latency}, "
            f"CPU {_unit(row['server_cpu_seconds_per_1000'], 's')} per 1,000, statuses {row['statuses']}"
        )
    for row in result["ratios"]:
        share = percent(row["real_over_null"], 0)
        yield f"{row['body']:12} {row['connections']:4} connections: {share} of the requests/s without a device"


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"
