"""The page about a run: benchmarks/peers/README.md."""

import statistics
from itertools import groupby
from typing import Any

from benchmarks.peers.bare import ALONE, BARE, DECODED
from benchmarks.peers.goals import FAULTS
from benchmarks.peers.measure import Row, medians
from benchmarks.peers.servers import OUR_SIZES, SERVERS

HEAD = """# Compared with other servers

    python -m benchmarks.peers --cifar10 FOLDER > benchmarks/peers/README.md

measures for about twenty minutes and writes this page. `--quick`: one short round, to see that it works. `--case`,
`--connections`, `--rounds` and `--seconds` measure a part, with `--settings` of an earlier run. The figures of every
run go to `build/peers/run.json` as they are made; `--page FILE` makes the page of such a file. It needs the extras
`cpu`, `serve`, `train` and `dev`; the peers get their own virtual environment in `build/peers/venv`, without torch.

## What is measured

Every server runs the same graphs (`msmlp export`) in the same ONNX Runtime and decodes with the same Pillow, one
picture per request over a real socket:

- *exits off*: one stage of 64 tokens and 8 blocks of width 128, untrained. 512 squares of four photographs, 32x32, half
  PNG and half JPEG.
- *cascade*: a stage of 16 tokens and 4 blocks, then one of 64 tokens and 7 blocks, untrained. The same squares, and a
  threshold at which half of them leave at the first stage, mixed in order.
- *shipped weights*: `weights/cifar10-s` at `balanced`. 600 PNG pictures of CIFAR-10 that the training held out for
  validation; exits as they fall.

The servers:

- *msmlp*: `msmlp serve --backend onnx` with its default settings: all checks, metrics and limits. In the cascade the
  threshold comes with each request. *1 front end*: the same with `--frontends 1`. *With keys*: the same with
  `--api-keys-file`, one key and limits that are never reached. Two servers that were started alike differ by some per
  cent all their life, so there are three of *msmlp* and three *with keys*, each with its own turns.
- *least server* (`least.py`): an asyncio protocol and httptools; decoding and the graphs inline on the loop's thread,
  in two processes. It checks, limits and counts nothing: a bound, not a server to use.
- *LitServe*: decoding in `decode_request`, its batching around the graphs; the body is the encoded image.
- *FastAPI*: a route that decodes and runs one image on a small pool of threads; uvicorn with uvloop and httptools, one
  process or two.
- *bare ONNX Runtime*: the graphs over decoded images in one process without a server, on all cores, with the fastest
  batch size, and either one session on all cores or one caller per core. *decode + bare* also decodes each batch; *one
  by one* does so image by image.

In a cascade the peers run a stage over the batch, then the next over the images that stay.

The load is a closed loop. Each server runs in its own process (with its children). All servers and the load share two
cores; a server is stopped (SIGSTOP) while another is measured, as some poll when idle. In each round every server takes
its turn at every load, in an order that changes from round to round; figures are medians of the rounds. Only answers
with status 200 count. Every one is compared with what the graphs answer for that image alone: class, exit, and
confidence within 1e-6; an answer that is wrong or `degraded` (brown-out) fails the run. CPU time is that of the server
with its children. The peers' settings are chosen beforehand at 32 connections, one after the other; a change is kept
when it is more than 3 % faster. Ours stay at their defaults.

*Outside compute* is the CPU time of a server less what the bare graphs need for the same images in batches of the same
size. That is measured in every round, by stage and batch size, on one thread per core with every core at work, and
interpolated between sizes. Our answers say in which batches an image was (`batch_size`); the least server and FastAPI
run every image alone; LitServe does not say. Decoding is outside compute, and so is what our service computes besides
(it runs 1 % of the early exits on, to watch them).
"""


def page(document: dict[str, Any]) -> str:
    """The page of a document, which may hold a part of all cases, loads and servers."""
    rows = medians(document["runs"])
    cases = [case for case in document["nets"] if any(row["case"] == case for row in rows)]
    parts = [HEAD, _run(document, rows), _goals(document["goals"])]
    parts += [_case(document, case, rows) for case in cases]
    return "\n".join([*parts, _settings(document["settings"])])


def _run(document: dict[str, Any], rows: list[Row]) -> str:
    machine, options = document["machine"], document["options"]
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    looked, wrong, degraded = (sum(row.get(name, 0) for row in rows) for name in ("looked_at", *FAULTS))
    rounds = 1 + max(run["round"] for run in document["runs"])
    busiest = max(row.get("generator_cpu", 0) for row in rows)
    others = [row["others_cpu"] for row in rows if row.get("others_cpu") is not None]
    disturbed = (
        f" Other processes on the machine took {statistics.median(others):.2f} cores (median)." if others else ""
    )
    note = f"\n{document['note']}\n" if document["note"] else ""
    return f"""## This run

{machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores of {machine["cores_of_machine"]}, load average before \
{machine["load_average_before"]:.1f}; Python {machine["python"]}, {packages}. {rounds} rounds of \
{options["seconds"]:g} s a run, {document["minutes"]:g} minutes in all. Of {looked:,} answers {wrong:,} were wrong\
 and {degraded:,} degraded. The load took at most {100 * busiest:.0f} % of a core.{disturbed}
{note}"""


def _goals(goals: list[Row]) -> str:
    """A line per goal and number wanted, with the loads beside each other."""
    lines = ["## Goals", "", "| goal | connections | wanted | measured | met |", "|---|---|---|---|---|"]
    for (goal, wanted), same in groupby(goals, key=lambda each: (each["goal"], each["wanted"])):
        of = list(same)
        cells = (
            "all" if of[0]["connections"] is None else _joined([each["connections"] for each in of]),
            wanted,
            _joined([_measured(each["measured"]) for each in of]),
            _joined([{None: "-", True: "yes", False: "**no**"}[each["met"]] for each in of]),
        )
        lines.append(f"| {goal} | {' | '.join(cells)} |")
    met = [each["met"] for each in goals if each["met"] is not None]
    note = "Ratios are those within a round, and the median over the rounds. The best peer is the fastest at that load."
    return "\n".join([*lines, "", f"{sum(met)} of {len(met)} are met. {note}", ""])


def _measured(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else _number(value, 2)


def _joined(values: list[Any]) -> str:
    return " / ".join(map(str, values))


def _case(document: dict[str, Any], case: str, rows: list[Row]) -> str:
    net, counts = document["nets"][case], document["options"]["connections"]
    found = {(row["server"], row["connections"]): row for row in rows if row["case"] == case}
    costs = " / ".join(f"{cost:.4f}" for cost in net["gflops"])
    lines = [f"## {case.capitalize()}", "", f"{costs} GFLOPs at the exits; " + _bounds(found)]
    lines += ["", "Requests/s / p99 in ms / CPU seconds per 1,000 requests / those outside compute:", ""]
    lines += ["| connections | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for server in SERVERS:
        if any(name == server for name, _ in found):
            lines.append(f"| {server} | " + " | ".join(_cell(found.get((server, count))) for count in counts) + " |")
    return "\n".join([*lines, *_ours(found), *_exits(found, net), *_failures(found), ""])


def _bounds(rows: dict[tuple[str, int | None], Row]) -> str:
    told = []
    for name in (BARE, DECODED, ALONE):
        if row := rows.get((name, None)):
            told.append(f"{name}: {row['requests_per_second']:,.0f} images/s ({row['way']})")
    return "; ".join(told) + "."


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    numbers = [_number(row[f"{name}_seconds_per_1000"], 2) for name in ("server_cpu", "outside")]
    return f"{row['requests_per_second']:,.0f} / {_number(row['p99_ms'], 1)} / {' / '.join(numbers)}"


def _ours(rows: dict[tuple[str, int | None], Row]) -> list[str]:
    """How many processes ours were, and the mean size of the batch that an image was in at stage 1."""
    told = []
    for server in OUR_SIZES:
        mine = {count: row for (name, count), row in rows.items() if name == server}
        if mine:
            sizes = _joined([_number(_mean_batch(row["batches"]), 1) for row in mine.values()])
            processes = int(next(iter(mine.values()))["processes"])
            told.append(f"{server}: {processes} process{'es' * (processes > 1)}, batches of {sizes}")
    return ["", f"At stage 1, by connections: {'; '.join(told)}."] if told else []


def _mean_batch(batches: dict[str, int]) -> float | None:
    sizes = {int(key.removeprefix("1:")): images for key, images in batches.items() if key.startswith("1:")}
    return sum(size * images for size, images in sizes.items()) / sum(sizes.values()) if sizes else None


def _exits(rows: dict[tuple[str, int | None], Row], net: Row) -> list[str]:
    if not net["thresholds"]:
        return []
    shares = []
    for server in SERVERS:
        exits = [row["exits"] for (name, _), row in rows.items() if name == server]
        whole = sum(sum(each.values()) for each in exits)
        of = [sum(each.get(str(k), 0) for each in exits) for k in range(1, len(net["gflops"]) + 1)]
        if exits:
            told = _joined([f"{100 * each / whole:.1f}" for each in of]) + " %" if whole else "no answer"
            shares.append(f"{server} {told}")
    thresholds = _joined([f"{each:.7f}" for each in net["thresholds"]])
    return ["", f"Share of the answers by exit (thresholds {thresholds}): {'; '.join(shares)}."]


def _failures(rows: dict[tuple[str, int | None], Row]) -> list[str]:
    found = []
    for (server, count), row in rows.items():
        bad = {status: number for status, number in row.get("statuses", {}).items() if status != "200"}
        bad |= {name: row[name] for name in FAULTS if row.get(name)}
        if bad:
            found.append(f"- {server}, {count} connections: " + ", ".join(f"{n:,} {what}" for what, n in bad.items()))
    return ["", "Not answered with 200, wrong or degraded:", "", *found] if found else []


def _settings(chosen: list[Row]) -> str:
    lines = ["## Settings of the peers", "", "| | | chosen | tried |", "|---|---|---|---|"]
    for each in chosen:
        best = ", ".join(f"{name} {value}" for name, value in each["best"].items())
        lines.append(f"| {each['case']} | {each['server']} | {best} | {len(each['tried']) or 'nothing else'} |")
    return "\n".join([*lines, ""])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
