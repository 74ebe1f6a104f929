"""campaign.json and summary.md: what was measured, by which command, on which device, and what was not."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_campaign.records import Records
from benchmarks.gpu_campaign.steps import Command, Step

NOT_YET = "not yet measured"
NAMED = ("fast", "balanced", "accurate")
"""Of the operating points, what the Markdown shows; the document has them all."""


def summarize(steps: list[Step], records: Records) -> tuple[dict[str, Any], str]:
    """Everything the records and the outputs of the steps say → (a document, the same as Markdown)."""
    commands = [command for step in steps for command in step.commands]
    rows = [
        {
            "step": command.name,
            "note": command.note,
            "record": records.read(command.name),
            "result": _result(records.work, command),
        }
        for command in commands
    ]
    sections = (_ran(rows), _accuracy(rows), _speed(rows), _pairs(rows), _commands(rows))
    return {"steps": rows}, "\n".join(["# What the campaign measured", *(line for lines in sections for line in lines)])


def _result(work: Path, command: Command) -> dict[str, Any] | None:
    path = work / str(command.output)
    return dict(json.loads(path.read_text())) if command.output and path.exists() else None


def _ran(rows: list[dict[str, Any]]) -> Iterator[str]:
    def cells(row: dict[str, Any]) -> Iterator[str]:
        record = row["record"]
        yield from (row["step"], record["state"] if record else NOT_YET)
        if record is None:
            yield from ("", "", "", "", "", "")
            return
        trains = record["epochs"] is not None
        beside = record["side_by_side"] - 1
        yield f"{record['seconds']:.0f}"
        yield str(record["epochs"]) if trains else ""
        yield _number(record["images_per_second"], "{:.0f}") if trains else ""
        yield _number(record["busy_share"], "{:.0%}") if trains else ""
        yield record["device"]
        yield "; ".join(filter(None, (row["note"], f"side by side with {beside} more" if beside else "")))

    yield from ("", "## Steps", "")
    head = ("step", "state", "seconds", "epochs", "images/s", "device busy", "device", "note")
    yield from _table(head, (cells(row) for row in rows))


def _accuracy(rows: list[dict[str, Any]]) -> Iterator[str]:
    def cells() -> Iterator[tuple[str, ...]]:
        for row in (row for row in rows if row["step"].endswith(".evaluate")):
            name, result = row["step"].removesuffix(".evaluate"), row["result"]
            if result is None:
                yield (name, "", NOT_YET, "", "", row["note"])
                continue
            images = str(result["images"])
            for exit in result["exits"]:
                yield (name, f"exit {exit['exit']}", *_hit(exit["accuracy"], exit["gflops"]), images, row["note"])
            for point in (point for point in result["operating_points"] if point["name"] in NAMED):
                yield (name, point["name"], *_hit(point["accuracy"], point["mean_gflops"]), images, row["note"])

    yield from ("", "## Test images", "")
    yield from _table(("weights", "exit or point", "accuracy", "GFLOPs", "images", "note"), cells())


def _speed(rows: list[dict[str, Any]]) -> Iterator[str]:
    def cells() -> Iterator[tuple[str, ...]]:
        for row in (row for row in rows if row["step"].endswith(".bench")):
            name, result = row["step"].removesuffix(".bench"), row["result"]
            if result is None:
                yield (name, "", NOT_YET, "", "", "", "")
                continue
            for cap in result["caps"]:
                speeds = (cap[f"{what}_images_per_second"] for what in ("plain", "bound", "engine"))
                shown = (f"{speed:.0f}" for speed in speeds)
                yield (name, str(cap["max_batch"]), *shown, f"{cap['efficiency']:.3f}", str(result["device"]))

    yield from ("", "## Serving, images/s", "")
    yield from _table(("weights", "batch up to", "plain", "bound", "engine", "engine / bound", "device"), cells())


def _pairs(rows: list[dict[str, Any]]) -> Iterator[str]:
    def cells() -> Iterator[tuple[str, ...]]:
        for row in (row for row in rows if row["step"].endswith(".pair")):
            name, result = row["step"].removesuffix(".pair"), row["result"]
            if result is None:
                yield (name, "", NOT_YET, "", "")
                continue
            point = f"{result['network']['weights']} at {result['network']['policy']}"
            saved, faster = f"{result['gflops_saved']:.2f}", f"{result['speedup']:.2f}"
            yield (name, point, saved, faster, str(result["device"]))

    yield from ("", "## Cascades against plain Mixers at the same accuracy, batches of at most 16", "")
    yield from _table(("Mixer", "cascade", "times fewer multiply-adds", "times the images/s", "device"), cells())


def _commands(rows: list[dict[str, Any]]) -> Iterator[str]:
    ran = [row["record"] for row in rows if row["record"] is not None]
    yield from ("", "## Commands", "", "```", *(record["command"] for record in ran), "```", "")
    for commit, torch in dict.fromkeys((record["git_commit"], record["torch"]) for record in ran):
        yield f"Commit {commit or 'unknown'}, torch {torch}."


def _hit(accuracy: float, gflops: float) -> tuple[str, str]:
    return f"{100 * accuracy:.2f} %", f"{gflops:.3g}"


def _number(value: float | None, form: str) -> str:
    return NOT_YET if value is None else form.format(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    cells = list(head)
    yield f"| {' | '.join(cells)} |"
    yield "|" + " --- |" * len(cells)
    for row in rows:
        yield f"| {' | '.join(row)} |"
