"""Writes benchmarks/http.md: what `msmlp bench http` has shown.

    msmlp bench http --json > benchmarks/http.json
    python -m scripts.http_page > benchmarks/http.md

The tables come from benchmarks/http.json; what people have to say stands in benchmarks/http_notes.md and is taken as
it is.
"""

import json
import sys
from pathlib import Path
from typing import Any

TENSOR = "oip-1024"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SERVERS = ("reference", "null", "real")

HEAD = """# The front end over HTTP

`msmlp bench http --json > benchmarks/http.json`, then `python -m scripts.http_page > benchmarks/http.md`. On {cores}
cores; the servers take turns within each of {rounds} rounds, {seconds:g} s each, and each figure is the median of the
rounds. Ratios are worth more than numbers. The load comes from a process of its own, which used at most
{generator:.0f} % of a core for single images and forms; tensors keep it busier.

- *reference*: a bare FastAPI route that reads the body, decodes with our function, and answers as many bytes, prepared
  beforehand. uvicorn with httptools and uvloop; no middleware.
- *null*: the product around a backend that computes nothing and answers with recorded scores.
- *real*: `msmlp serve` with the shipped weights.
- *engine*: the same engine, null or real, in a process without HTTP that is given as many submissions of 1,024 images
  at once, right after the server's run.

Bodies: `image` is one 32x32 PNG square of a photograph as it is; `multipart-64` a form of 64; `oip-1024` a binary
`pixels` tensor of 1,024 for `/v2/models/msmlp/infer`. Only answers with 200 are counted.
"""


def page(result: dict[str, Any], notes: str) -> str:
    """The whole page."""
    closed = [row for row in result["load"] if row["loop"] == "closed"]
    opened = [row for row in result["load"] if row["loop"] == "open"]
    generator = 100 * max(row["generator_cpu"] for row in result["load"] if row["body"] != TENSOR)
    head = HEAD.format(**{name: result[name] for name in ("rounds", "seconds", "cores")}, generator=generator)
    parts = [head, "## Closed loop\n", _table(SPEED, _cases(closed), _speed)]
    parts += [_table(LATENCY, _cases(closed), _latency)]
    beside = [row for row in closed if "over_engine" in row]
    if beside:
        parts += ["## Beside the engine alone\n", _table(ENGINE, beside, _engine)]
    if opened:
        parts += ["## Open loop\n", OPEN_TEXT, _table(OPEN, opened, _open)]
    return "\n".join([*parts, notes])


Row = dict[str, Any]
Case = dict[str, Row]

SPEED = (
    *("body", "connections", "reference requests/s", "null", "null / reference", "real", "statuses of real"),
    *("CPU s a 1,000: reference", "null", "real"),
)
LATENCY = ("body", "connections", *(f"{server} p50 / p99 ms" for server in SERVERS))
ENGINE = ("server", "connections", "images/s over HTTP", "engine's images/s", "over HTTP / engine")
OPEN = ("body", "server", "offered requests/s", "answered", "p50 ms", "p95 ms", "p99 ms")
OPEN_TEXT = """Poisson arrivals at shares of what the same server took at best. Latency runs from when one was due.
"""


def _cases(rows: list[Row]) -> list[Case]:
    """The servers' rows of each body and number of connections."""
    cases: dict[tuple[str, int], Case] = {}
    for row in rows:
        cases.setdefault((row["body"], row["connections"]), {})[row["server"]] = row
    return list(cases.values())


def _table(head: tuple[str, ...], rows: list[Any], cells: Any) -> str:
    lines = [list(head), ["---"] * len(head), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _where(case: Case) -> list[str]:
    return [case["null"]["body"], str(case["null"]["connections"])]


def _speed(case: Case) -> list[str]:
    speed = {server: case[server]["requests_per_second"] for server in SERVERS}
    ratio = f"{100 * speed['null'] / speed['reference']:.0f} %"
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(case["real"]["statuses"].items()))
    spent = [_number(case[server]["server_cpu_seconds_per_1000"], 2) for server in SERVERS]
    return [
        *_where(case),
        _rate(speed["reference"]),
        _rate(speed["null"]),
        ratio,
        _rate(speed["real"]),
        statuses,
        *spent,
    ]


def _latency(case: Case) -> list[str]:
    return [*_where(case), *(f"{_number(case[s]['p50_ms'])} / {_number(case[s]['p99_ms'])}" for s in SERVERS)]


def _engine(row: Row) -> list[str]:
    speeds = (row["images_per_second"], row["engine_images_per_second"])
    return [row["server"], str(row["connections"]), *map(_rate, speeds), f"{100 * row['over_engine']:.0f} %"]


def _open(row: Row) -> list[str]:
    rates = _rate(row["offered_per_second"]), _rate(row["requests_per_second"])
    return [row["body"], row["server"], *rates, *(_number(row[f"p{p}_ms"]) for p in (50, 95, 99))]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    notes = (BENCHMARKS / "http_notes.md").read_text()
    sys.stdout.write(page(json.loads((BENCHMARKS / "http.json").read_text()), notes))
