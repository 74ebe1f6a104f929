"""The page about a run: benchmarks/peers/README.md."""

import statistics
from typing import Any

from benchmarks.peers.measure import BARE, DECODED, Row
from benchmarks.peers.servers import CASCADE, OURS, PEERS, PLAIN

HEAD = """# Compared with other servers

    python -m benchmarks.peers > benchmarks/peers/README.md

measures for about ten minutes and writes this page (`--quick`: one round in two minutes, to see that it works;
`--json`: the document instead of the page). It needs the extras `cpu`, `serve` and `train`; the peers get
their own virtual environment in `build/peers/venv`, without torch.

## What is measured

Every server runs the same graphs (`msmlp export`) in the same ONNX Runtime and decodes with the same Pillow. The
weights are untrained; the images are 64 PNG squares of a photograph, 32x32, one per request over a real socket. The
networks are Mixers of width 128: *exits off* is one stage of 64 tokens and 8 blocks; the *cascade* has a stage of 16
tokens and 4 blocks, then one of 64 tokens and 7 blocks, and a threshold at which half of these images leave at the
first.

- *msmlp*: `msmlp serve --backend onnx` with its default settings; in the cascade the threshold comes with each request.
- *LitServe*: decoding in `decode_request`, its batching around the graphs; the body is the encoded image.
- *FastAPI*: a route that decodes and runs one image on a small pool of threads; uvicorn with uvloop and httptools, one
  process or two.
- *bare ONNX Runtime*: the graphs over decoded images in one process without a server, on all cores, with the fastest
  batch size, and either one session on all cores or one caller per core. *decode + bare* also decodes each batch.

In the cascade the peers run the first stage over the batch, then the second over the images that stay.

The load is a closed loop. Each server runs in its own process (with its children). All servers and the load share two
cores; a server is stopped (SIGSTOP) while another is measured, as some poll when idle. In each round every server takes
its turn at every load, in an order that changes from round to round; figures are medians of the rounds. Only answers
with status 200 count. One in nine, up to 200 per run, is compared with what the graphs answer for that image: class,
exit, and confidence within 1e-6. CPU time is that of the server with its children. The peers' settings are chosen
beforehand at 32 connections, one after the other; a change is kept when it is more than 3 % faster. Ours stay at their
defaults.
"""


def page(document: dict[str, Any]) -> str:
    parts = [HEAD, _run(document)]
    parts += [_case(document, case) for case in (PLAIN, CASCADE)]
    return "\n".join([*parts, _settings(document["settings"])])


def _run(document: dict[str, Any]) -> str:
    machine, options = document["machine"], document["options"]
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    looked, wrong = (sum(row.get(name, 0) for row in document["rows"]) for name in ("looked_at", "wrong"))
    busiest = max(row.get("generator_cpu", 0) for row in document["rows"])
    others = [row["others_cpu"] for row in document["rows"] if row.get("others_cpu") is not None]
    disturbed = (
        f" Other processes on the machine took {statistics.median(others):.2f} cores (median)." if others else ""
    )
    note = f"\n{document['note']}\n" if document["note"] else ""
    return f"""## This run

{machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores of {machine["cores_of_machine"]}, load average before \
{machine["load_average_before"]:.1f}; Python {machine["python"]}, {packages}. {options["rounds"]} rounds of \
{options["seconds"]:g} s a run, {document["minutes"]:g} minutes in all. Of {looked:,} sampled answers {wrong:,} were \
wrong. The load took at most {100 * busiest:.0f} % of a core.{disturbed}
{note}"""


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
    lines += ["", "Requests/s / p99 in ms / CPU seconds of the server per 1,000 requests:", ""]
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
        f"Share of sampled answers that left at stage 1 (threshold {net['thresholds'][0]:.7f}): {', '.join(shares)}.",
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
