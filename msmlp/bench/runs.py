"""The runs of `msmlp bench http`: every server with every load, in turn within each round."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msmlp.bench.bodies import BODIES, TENSOR, connections_of, exits_of, images_of, path_of, requests, thumbnails
from msmlp.bench.generator import Load, Seen
from msmlp.bench.processes import Server, image_size

WARM_SECONDS = 0.5
OPEN_CONNECTIONS = 256
Row = dict[str, Any]


@dataclass(frozen=True)
class HttpOptions:
    """What to measure: with a `url` that service alone, else servers of our own around `weights` (None: the shipped).

    `files` are encoded images (none: thumbnails of a photograph). `rates` are open loops: a number of requests a
    second, or a share of the closed loop's best, as `80%`. Each run lasts `seconds`; medians over `rounds` are told.
    """

    url: str | None = None
    weights: Path | None = None
    files: tuple[bytes, ...] = ()
    connections: tuple[int, ...] = (1, 8, 32, 128)
    rates: tuple[str, ...] = ("50%", "80%")
    bodies: tuple[str, ...] = BODIES
    seconds: float = 2.0
    rounds: int = 3


class Progress:
    """Where the bench says what it does: `say` a line, and `step` before each run of so many."""

    def say(self, line: str) -> None:
        """Something has happened."""

    def step(self, what: str, number: int, steps: int) -> None:
        """Run `number` of `steps` begins."""


class Runs:
    """One run's servers and requests, and how they are measured.

    `send` offers a load; `engines`, by the server's name, say how many images a second its engine does alone, given so
    many submissions at once and the seconds.
    """

    def __init__(
        self,
        options: HttpOptions,
        progress: Progress,
        send: Callable[[Load], Seen],
        engines: Mapping[str, Callable[[int, float], float]],
    ) -> None:
        self._options, self._progress, self._send, self._engines = options, progress, send, engines
        self._requests: dict[tuple[str, str], tuple[bytes, ...]] = {}
        self._servers: list[Server] = []
        self._done = 0
        runs = sum(len(connections_of(body, options.connections)) + len(options.rates) for body in options.bodies)
        self._steps = runs * options.rounds * (1 if options.url else 3)

    def prepare(self, servers: list[Server]) -> None:
        """Requests for every server, the reference's with the length that the product answers; a short run of each."""
        self._servers = servers
        asked = servers[-1]
        size = image_size(asked.url)
        files = list(self._options.files) or thumbnails(size)
        for body in self._options.bodies:
            sent = requests(asked.url, path_of(body), body, files, size)
            answers = self._send(Load(asked.url, sent, 1, WARM_SECONDS)).answers
            length = round(statistics.mean(map(len, answers))) if answers else 1000
            for server in servers:
                path = f"/?{length}" if server.name == "reference" else path_of(body)
                made = self._requests[server.name, body] = requests(server.url, path, body, files, size)
                self._send(Load(server.url, made, 8, WARM_SECONDS))

    def closed_loops(self) -> list[Row]:
        """As many requests as each server takes."""
        bodies, connections = self._options.bodies, self._options.connections
        cases = [(body, count, None) for body in bodies for count in connections_of(body, connections)]
        return self._measure([(server, *case) for case in cases for server in self._servers])

    def open_loops(self, closed: list[Row]) -> list[Row]:
        """Requests at given rates, shares being those of what the same server took of the same body at best."""
        best: defaultdict[tuple[str, str], float] = defaultdict(float)
        for row in closed:
            key = row["server"], row["body"]
            best[key] = max(best[key], row["requests_per_second"])
        cases: list[tuple[Server, str, int, float | None]] = []
        for body in self._options.bodies:
            for text in self._options.rates:
                for server in self._servers:
                    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
                    rate = share * (best[server.name, body] if text.endswith("%") else 1)
                    if rate > 0:
                        cases.append((server, body, OPEN_CONNECTIONS, rate))
        return self._measure(cases)

    def _measure(self, cases: list[tuple[Server, str, int, float | None]]) -> list[Row]:
        runs: list[list[Row]] = [[] for _ in cases]
        for seed in range(self._options.rounds):
            for (server, body, count, rate), rows in zip(cases, runs, strict=True):
                how = f"{count} connections" if rate is None else f"{rate:.0f} requests/s"
                self._done += 1
                self._progress.step(f"{server.name}, {body}, {how}", self._done, self._steps)
                rows.append(self._run(server, body, count, rate, seed))
        return [_median(rows) for rows in runs]

    def _run(self, server: Server, body: str, connections: int, rate: float | None, seed: int) -> Row:
        sent = self._requests[server.name, body]
        before = server.cpu_seconds()
        seen = self._send(Load(server.url, sent, connections, self._options.seconds, rate, seed))
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
            "images_per_second": answered * images_of(body) / seen.seconds,
            **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
            "server_cpu_seconds_per_1000": spent,
            "generator_cpu": seen.cpu / seen.seconds,
            "statuses": seen.statuses,
            "exits": sum((exits_of(body, answer) for answer in seen.answers), Counter[str]()),
            **self._beside_the_engine(server.name, body, connections, rate, answered * images_of(body) / seen.seconds),
        }

    def _beside_the_engine(self, server: str, body: str, connections: int, rate: float | None, reached: float) -> Row:
        """What the server's engine does with as many images at a time, without HTTP, right after it."""
        alone = self._engines.get(server)
        if alone is None or body != TENSOR or rate is not None:
            return {}
        images = alone(connections, self._options.seconds)
        return {"engine_images_per_second": images, "over_engine": reached / images}


def _median(rows: list[Row]) -> Row:
    """Rounds of one run in one row: medians of numbers, sums of counts, shares of exits."""
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
