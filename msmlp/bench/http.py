"""`msmlp bench http`: servers over real sockets, with their device and without one, in one run."""

import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msmlp.bench.generator import Load, Seen, offer
from msmlp.bench.images import FORM, IMAGES_OF, TENSOR, exits_of, requests, thumbnails
from msmlp.bench.processes import Server, image_size, is_ready, server_process
from msmlp.model.errors import MsmlpError
from msmlp.model.text import percent

SERVE = "from msmlp.main import main; main()"
NULL = "from msmlp.bench.null_server import main; main()"
WARM_SECONDS = 0.5
MOST_CONNECTIONS = {FORM: 4, TENSOR: 2}
"""One is read while the other runs; more would only wait."""
NULL_ONE, NULL_TWO = "null", "null, 2 front ends"
Row = dict[str, Any]
Case = tuple[Server, str, int]
"""A server, the kind of body, and connections."""


@dataclass(frozen=True)
class HttpOptions:
    """What to measure: the service at `url`, or without one servers started with `weights` (None: the default).

    `files` are encoded images (none: thumbnails of a photograph). Each run lasts `seconds`; the result has medians over
    `rounds`.
    """

    url: str | None = None
    weights: Path | None = None
    files: tuple[bytes, ...] = ()
    connections: tuple[int, ...] = (1, 8, 32, 128)
    bodies: tuple[str, ...] = tuple(IMAGES_OF)
    seconds: float = 2.0
    rounds: int = 3

    def connections_of(self, body: str) -> list[int]:
        return sorted({min(count, MOST_CONNECTIONS.get(body, count)) for count in self.connections})


def bench_http(options: HttpOptions, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure. Servers take turns within each round, so that what disturbs the machine disturbs all.

    The load comes from a process of its own, whose CPU time is in each row: near 1 it is the generator that is
    measured.

    Raises:
        MsmlpError: no service is ready at the URL, or a server did not start.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack, ProcessPoolExecutor(1, mp_context=context) as generator:
        servers = list(_servers(options, progress, stack))
        load = _measure(options, servers, progress, lambda load: generator.submit(offer, load).result())
    return {
        "url": options.url,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load": load,
        "ratios": ratios(load),
        "front_ends": front_ends(load),
    }


def _servers(options: HttpOptions, progress: Callable[[str], None], stack: ExitStack) -> Iterator[Server]:
    if options.url is not None:
        url = options.url.rstrip("/")
        if not is_ready(url):
            raise MsmlpError(f"no service is ready at {url}; start it with msmlp serve, or leave out --url")
        yield Server("service", url, None)
        return
    # Shedding and brown-out would make the servers incomparable: there is room for all that the closed loops send in
    # each of two front ends, and no limit on the wait.
    most = 2 * max(IMAGES_OF[body] * max(options.connections_of(body)) for body in options.bodies)
    arguments = [f"--capacity={max(1024, most)}", "--max-wait-ms=0", "--brownout-ms=0", "--port=0", "--host=127.0.0.1"]
    arguments.append("--drain-seconds=0")  # nobody is to be told
    arguments += [] if options.weights is None else [f"--weights={options.weights}"]
    programs = {
        "real": [SERVE, "serve"],
        NULL_ONE: [NULL, "--frontends=1"],
        NULL_TWO: [NULL, "--frontends=2"],
    }
    for name, program in programs.items():
        yield stack.enter_context(server_process(name, ["-c", *program, *arguments], progress))


def _measure(
    options: HttpOptions, servers: list[Server], progress: Callable[[str], None], send: Callable[[Load], Seen]
) -> list[Row]:
    """A row for every server with every body and number of connections."""
    size = image_size(servers[0].url)
    files = list(options.files) or thumbnails(size)
    sent = {(server, body): requests(server.url, body, files, size) for server in servers for body in options.bodies}
    for (server, _), warm in sent.items():
        send(Load(server.url, warm, 8, WARM_SECONDS))
    cases = [(server, body, n) for body in options.bodies for n in options.connections_of(body) for server in servers]
    rows: dict[Case, list[Row]] = {case: [] for case in cases}
    for number in range(options.rounds):
        for case in cases:
            server, body, connections = case
            progress(f"round {number + 1} of {options.rounds}: {server.name}, {body}, {connections} connections")
            load = Load(server.url, sent[server, body], connections, options.seconds)
            rows[case].append(_run(case, partial(send, load)))
    return [_median(of) for of in rows.values()]


def _run(case: Case, send: Callable[[], Seen]) -> Row:
    server, body, connections = case
    before = server.cpu_seconds()
    seen = send()
    after, answered = server.cpu_seconds(), len(seen.latencies)
    spent = None if before is None or after is None or not answered else 1e3 * (after - before) / answered
    percentiles = seen.percentiles_ms().tolist() if answered else [None] * 3
    return {
        "server": server.name,
        "body": body,
        "connections": connections,
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


def ratios(load: list[Row]) -> list[Row]:
    """What share of the requests per second that it takes without a device the service reaches with it."""
    return [
        {"body": body, "connections": count, "real_over_null": _ratio(real, null, "requests_per_second")}
        for body, count, real, null in _pairs(load, "real", NULL_ONE)
        if null["requests_per_second"]
    ]


def front_ends(load: list[Row]) -> list[Row]:
    """Two front ends without a device relative to one: CPU seconds per request of all processes, and requests/s."""
    return [
        {
            "body": body,
            "connections": count,
            "cpu_two_over_one": _ratio(two, one, "server_cpu_seconds_per_1000"),
            "speed_two_over_one": _ratio(two, one, "requests_per_second"),
        }
        for body, count, two, one in _pairs(load, NULL_TWO, NULL_ONE)
    ]


def _pairs(load: list[Row], first: str, second: str) -> Iterator[tuple[str, int, Row, Row]]:
    """The rows of two servers with the same body and connections."""
    rows = {(row["server"], row["body"], row["connections"]): row for row in load}
    for (server, body, count), row in rows.items():
        if server == first and (second, body, count) in rows:
            yield body, count, row, rows[second, body, count]


def _ratio(above: Row, below: Row, name: str) -> float | None:
    return round(above[name] / below[name], 3) if above[name] is not None and below[name] else None


def http_lines(result: dict[str, Any]) -> Iterator[str]:
    for row in result["load"]:
        latency = ", ".join(f"{p} {_unit(row[f'{p}_ms'], 'ms')}" for p in ("p50", "p95", "p99"))
        yield (
            f"{row['server']:9} {row['body']:12} {row['connections']:4} connections: "
            f"{row['requests_per_second']:8.1f} requests/s, {latency}, "
            f"CPU {_unit(row['server_cpu_seconds_per_1000'], 's')} per 1,000, statuses {row['statuses']}"
        )
    for row in result["ratios"]:
        share = percent(row["real_over_null"], 0)
        yield f"{row['body']:12} {row['connections']:4} connections: {share} of the requests/s without a device"
    for row in result["front_ends"]:
        cpu, speed = (_unit(row[f"{name}_two_over_one"], "x") for name in ("cpu", "speed"))
        yield (
            f"{row['body']:12} {row['connections']:4} connections, 2 front ends to 1 without a device: "
            f"CPU per request {cpu}, requests/s {speed}"
        )


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"
