"""The page about a run: benchmarks/overload/README.md."""

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
REFUSED_MS = 100.0

HEAD = """# Under overload

    python -m benchmarks.overload > benchmarks/overload/README.md

measures for about eight minutes and writes this page; `--seconds`, `--overload-seconds`, `--kind` and `--loads` measure
a part, and `--page build/overload.json` writes the page of an earlier run. `msmlp serve` runs with its default settings
and weights on one core, the load on another. Requests come at the times of a Poisson process, whatever came back, on as
many connections as are waiting: one picture of 32x32 (squares of scikit-image's photographs, half PNG, half JPEG), or
a form of 16. 100 % is what a closed loop with 32 connections gets answered with `degrade=false`. Brown-out makes
answers cheaper from there on, so that goodput goes on rising. The first quarter of each load, in which the queue fills,
is not counted. Latencies run from when a request was due.
"""


def page(document: Row) -> str:
    sweep = [row for row in document["rows"] if "load" in row]
    lines = [HEAD, f"{document['machine']}, two cores; {document['date']}; {document['seconds']:g} s of each load."]
    if document["load_average_before"] > 0.5:
        lines.append(f"The machine had other work (load average {document['load_average_before']:.1f} before).")
    for kind in dict.fromkeys(row["kind"] for row in sweep):
        rows = [row for row in sweep if row["kind"] == kind]
        lines += [
            "",
            f"## {kind.capitalize()}",
            "",
            f"100 % is {rows[0]['capacity']:.0f} requests/s.",
            "",
            *table(rows),
        ]
    lines += ["", "## Goals", "", "| goal | wanted | measured | |", "|---|---|---|---|"]
    for goal, wanted, found, met in goals(document):
        lines.append(f"| {goal} | {wanted} | {found} | {'met' if met else '**missed**'} |")
    for row in document["rows"]:
        if row["kind"] == "overload":
            lines += [
                "",
                f"Four times the capacity for {document['overload_seconds']:g} s in all, at rest after each part. The "
                "engine's memory for images is touched as more of them are in flight at once, and then stays.",
                "",
                *at_rest(row),
            ]
    lines += ["", *(f"Fault: {fault}." for fault in document["faults"])]
    return "\n".join(lines).rstrip() + "\n"


def table(rows: list[Row]) -> Iterator[str]:
    yield "| load | answered/s | p50 ms | p99 ms | degraded | shed | p99 of a 429, ms | sent late, p99 ms |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = (
            f"{row['load']:.0%}",
            f"{row['goodput']:.0f}",
            number(row["p50_ms"]),
            number(row["p99_ms"]),
            f"{row['degraded']:.0%}",
            f"{row['shed']:.0%}",
            number(row["refusal_p99_ms"]) + (f" (of {refused})" if (refused := row["statuses"].get("429")) else ""),
            number(row["sent_late_p99_ms"]),
        )
        yield f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def goals(document: Row) -> Iterator[tuple[str, str, str, bool]]:
    """Goal, what is wanted, what was measured, and whether it is met."""
    sweep = [row for row in document["rows"] if "load" in row]
    for kind in dict.fromkeys(row["kind"] for row in sweep):
        rows = [row for row in sweep if row["kind"] == kind]
        share = rows[-1]["goodput"] / max(row["goodput"] for row in rows)
        yield f"{kind}: goodput at {rows[-1]['load']:.0%} of its peak", "≥ 90 %", f"{share:.0%}", share >= 0.9
        longest = 2 * document["max_wait_ms"]
        yield limit(f"{kind}: p99 of an accepted request", rows, "p99_ms", longest)
        yield limit(f"{kind}: p99 of a 429", rows, "refusal_p99_ms", REFUSED_MS)
    for row in document["rows"]:
        if row["kind"] == "overload":
            left = [fault for fault in document["faults"] if "at the end" in fault or "memory grew" in fault]
            yield "left behind by two minutes of overload", "nothing", ", ".join(left) or "nothing", not left


def limit(goal: str, rows: list[Row], name: str, most: float) -> tuple[str, str, str, bool]:
    """The worst of all loads."""
    worst = max((row[name] for row in rows if row[name] is not None), default=0.0)
    return goal, f"≤ {most:.0f} ms", f"{worst:.0f} ms", worst <= most


def at_rest(row: Row) -> Iterator[str]:
    rests = row["rests"]
    yield "| | at the start | " + " | ".join(f"after {number}" for number in range(1, len(rests))) + " |"
    yield "|---" * (len(rests) + 1) + "|"
    for name in rests[0]:
        yield f"| {name.removeprefix('msmlp_')} | " + " | ".join(f"{each[name]:.1f}" for each in rests) + " |"
