"""Writes benchmarks/peers/README.md from what a run has printed.

python -m benchmarks.peers.page [docs/results/peers.json] > benchmarks/peers/README.md
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.bare import BARE, DECODED
from benchmarks.peers.goals import CASCADE, PLAIN
from benchmarks.peers.servers import OURS, PEERS

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "peers.json"
Row = dict[str, Any]

HEAD = """# Beside other servers

    python -m benchmarks.peers --json > docs/results/peers.json
    python -m benchmarks.peers.page > benchmarks/peers/README.md

The first measures, in about ten minutes (`--quick`: two, one round, to see that it works), and the second writes this
page. They need the extras `cpu`, `serve` and `train`; the peers get a virtual environment of their own, in
`build/peers/venv`, and torch is not in it.

## What is measured

Every server runs the same graphs (`msmlp export`) in the same ONNX Runtime and decodes with the same Pillow. The
weights are untrained, the images 64 PNG squares of a photograph, 32x32, one a request over a real socket. The nets are
Mixers of width 128: *exits off* is one stage of 64 tokens and 8 blocks; the *cascade* has a stage of 16 tokens and 4
blocks, then one of 64 tokens and 7 blocks, and the threshold at which half of these images leave at the first.

- *msmlp*: `msmlp serve --backend onnx` as it is shipped; in the cascade the threshold comes with each request.
- *LitServe*: decoding in `decode_request`, its batching around the graphs; the body is the image as it is.
- *FastAPI*: a route that decodes and runs one image on a small pool of threads; uvicorn with uvloop and httptools, one
  process or two.
- *bare ONNX Runtime*: the graphs over decoded images in one process without a server, on all cores, in batches of the
  size that is fastest, with one session on all cores or a caller a core. *decode + bare* also decodes each batch, in
  the way that is fastest for both together.

In the cascade peers do what their users do: the first stage over the batch, then the second over those who are left.

Closed loop. Each server is a process of its own (with its children); all and the load share two cores, and who is not
asked is stopped (SIGSTOP), as some poll while they wait. Within each round every server takes its turn at every load,
in an order that changes with the round; figures are medians of the rounds. Only answers with 200 count. One in nine, up
to 200 a run, is compared with what the graphs say of that very image: class, exit, and confidence within 1e-6. CPU is
that of the server with its children. Peers' settings are chosen beforehand at 32 connections, one after the other, a
change being kept where it brings more than 3 %; the settings of ours are never touched.
"""


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD, _run(document), _goals(document["goals"])]
    parts += [_case(document, case) for case in (PLAIN, CASCADE)]
    return "\n".join([*parts, _settings(document["settings"])])


def _run(document: dict[str, Any]) -> str:
    machine, options = document["machine"], document["options"]
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    looked, wrong = (sum(row.get(name, 0) for row in document["rows"]) for name in ("looked_at", "wrong"))
    busiest = max(row.get("generator_cpu", 0) for row in document["rows"])
    others = [row["others_cpu"] for row in document["rows"] if row.get("others_cpu") is not None]
    disturbed = (
        f" Whatever else ran on the machine took {statistics.median(others):.2f} cores (median)." if others else ""
    )
    note = f"\n{document['note']}\n" if document["note"] else ""
    return f"""## This run

{machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores of {machine["cores_of_machine"]}, load average before \
{machine["load_average_before"]:.1f}; Python {machine["python"]}, {packages}. {options["rounds"]} rounds of \
{options["seconds"]:g} s a run, {document["minutes"]:g} minutes in all. Of {looked:,} answers looked at {wrong:,} were \
wrong. The load took at most {100 * busiest:.0f} % of a core.{disturbed}
{note}"""


def _goals(goals: list[Row]) -> str:
    rows = [
        f"| {goal['goal']} | {goal['wanted']} | {_number(goal['reached'], 2)} | {'met' if goal['met'] else 'missed'} |"
        for goal in goals
    ]
    return "\n".join(["## Goals", "", "| | wanted | reached | |", "|---|---|---|---|", *rows, ""])


def _case(document: dict[str, Any], case: str) -> str:
    rows = {(row["server"], row["connections"]): row for row in document["rows"] if row["case"] == case}
    counts = document["options"]["connections"]
    net = document["nets"][case]
    costs = " and ".join(f"{cost:.4f}" for cost in net["gflops"])
    lines = [
        f"## {case.capitalize()}",
        "",
        f"{costs} GFLOPs{' at the two exits' if net['thresholds'] else ''}; " + _bounds(rows),
    ]
    lines += ["", "Requests/s / p99 in ms / CPU seconds of the server a 1,000 requests:", ""]
    lines += ["| connections | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for server in (OURS, *(peer.name for peer in PEERS)):
        lines.append(f"| {server} | " + " | ".join(_cell(rows[server, count]) for count in counts) + " |")
    return "\n".join([*lines, *_left_early(rows, net), *_failures(rows), ""])


def _bounds(rows: dict[tuple[str, int | None], Row]) -> str:
    told = []
    for name in (BARE, DECODED):
        row = rows[name, None]
        told.append(f"{name}: {row['requests_per_second']:,.0f} images/s ({row['way']})")
    return "; ".join(told) + "."


def _cell(row: Row) -> str:
    cpu = _number(row["server_cpu_seconds_per_1000"], 2)
    return f"{row['requests_per_second']:,.0f} / {_number(row['p99_ms'], 1)} / {cpu}"


def _left_early(rows: dict[tuple[str, int | None], Row], net: Row) -> list[str]:
    if not net["thresholds"]:
        return []
    shares = []
    for server in (OURS, *(peer.name for peer in PEERS)):
        exits = [row["exits"] for (name, _), row in rows.items() if name == server]
        early, whole = sum(each.get("1", 0) for each in exits), sum(sum(each.values()) for each in exits)
        shares.append(f"{server} {100 * early / whole:.1f} %" if whole else f"{server}: no answer")
    return [
        "",
        f"Left at stage 1, of the answers looked at (threshold {net['thresholds'][0]:.7f}): {', '.join(shares)}.",
    ]


def _failures(rows: dict[tuple[str, int | None], Row]) -> list[str]:
    found = []
    for (server, count), row in rows.items():
        bad = {status: number for status, number in row.get("statuses", {}).items() if status != "200"}
        bad |= {"wrong": row["wrong"]} if row.get("wrong") else {}
        if bad:
            found.append(f"- {server}, {count} connections: " + ", ".join(f"{n:,} {what}" for what, n in bad.items()))
    return ["", "Not answered with 200, or wrong:", "", *found] if found else []


def _settings(chosen: list[Row]) -> str:
    lines = ["## Settings of the peers", "", "| | | chosen | tried |", "|---|---|---|---|"]
    for each in chosen:
        best = ", ".join(f"{name} {value}" for name, value in each["best"].items())
        lines.append(f"| {each['case']} | {each['server']} | {best} | {len(each['tried']) or 'nothing else'} |")
    return "\n".join([*lines, ""])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def main() -> None:
    """Print it."""
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    sys.stdout.write(page(json.loads(given.read_text())))


if __name__ == "__main__":
    main()
