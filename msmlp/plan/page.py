"""The answers as lines of text, and as one HTML page with plots in it."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msmlp.model.report.plots import paper
from msmlp.model.text import percent
from msmlp.model.weights.files import write_atomically

SIMULATED = (
    "Simulated: the service's own scheduler, admission and brown-out on a virtual clock, with measured times per batch "
    "and per request. Exits and accuracy are those of the calibration images. Not simulated: networks, connections, "
    "images larger than thumbnails, retries, restarts, and other work on the machine."
)
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.25rem .75rem;border-bottom:1px solid #ccc;text-align:left}"
    "img{max-width:100%}footer{color:#555}"
)


def plan_lines(document: dict[str, Any]) -> Iterator[str]:
    """The document of `answer` for a terminal."""
    for name, value in facts(document):
        yield f"{name}: {value}"
    yield SIMULATED


def facts(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values, the answer first."""
    goal, seen = document["goal"], document["expected"]
    unit, needed = ("core" if document["layout"] == "inline" else "device"), document["replicas"]
    unit += "s" * (needed > 1)
    yield "replicas needed", f"{needed} {unit} ({document['backend']} on {document['device']})"
    without = document["replicas_without_brownout"]
    more = f"more than {document['max_replicas']} (--max-replicas)"
    yield "without brown-out", more if without is None else str(without)
    accuracy = f"accuracy at least {goal['accuracy']:g}, " if goal["accuracy"] else ""
    yield "goal", f"p99 at most {goal['p99_ms']:g} ms, {accuracy}at most {percent(goal['refused'])} refused"
    yield "at that number", _seen(seen)
    yield "time spent in the model's stages", percent(document["device_busy"], 0)
    hour = document["images_per_replica_hour"]
    yield "images per replica and hour", "meets the goal at no load" if hour is None else f"{hour:,.0f}"
    if (price := document["price"]) is not None:
        yield "price per hour", f"{price['hour']:,.2f}"
        if price["hour_without_brownout"] is not None:
            yield "price per hour without brown-out", f"{price['hour_without_brownout']:,.2f}"
        if price["million_images"] is not None:
            yield "price of a million images", f"{price['million_images']:,.4f}"
    if (failure := document.get("failure")) is not None:
        yield (
            f"after {failure['dying']} of {needed} replicas died",
            f"{_seen(failure['after'])}, {failure['lost']} requests lost",
        )


def _seen(seen: dict[str, Any]) -> str:
    if seen["p99_ms"] is None:
        return f"no request answered, {percent(seen['refused'])} refused"
    return (
        f"{seen['images_per_second']:,.0f} images/s, p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms, "
        f"accuracy {seen['accuracy']:.3f}, {percent(seen['degraded'])} degraded, {percent(seen['refused'])} refused"
    )


def write_page(document: dict[str, Any], path: Path) -> None:
    """One HTML file that needs no other; OSError if it cannot be written."""
    cells = ((html.escape(name), html.escape(value)) for name, value in facts(document))
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
    runs = [("The run", document["bins"])]
    if "failure" in document:
        dying = document["failure"]["dying"]
        runs.append((f"{dying} of {document['replicas']} replicas die", document["failure"]["bins"]))
    plots = "".join(f'<h2>{title}</h2><img alt="{title}" src="{_plot(bins)}">' for title, bins in runs)
    weights = html.escape(document["weights"])
    parts = (
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>Plan for {weights}</title><style>{STYLE}</style><h1>Plan for {weights}</h1>",
        f"<table>{rows}</table>{plots}<footer>{SIMULATED}</footer></html>",
    )
    write_atomically(path, "\n".join(parts).encode())


def _plot(bins: Sequence[dict[str, Any]]) -> str:
    """Images/s, latencies, brown-out and refusals over time, as the address of an image."""
    figure = paper(8, 6)
    speed, latency, pressure = figure.subplots(3, 1, sharex=True)
    times = [row["from"] for row in bins]
    speed.plot(times, [row["images_per_second"] for row in bins])
    speed.set_ylabel("images/s")
    speed.set_ylim(bottom=0)
    for name in ("p50_ms", "p99_ms"):
        latency.plot(times, [row[name] or float("nan") for row in bins], label=name.removesuffix("_ms"))
    latency.set_ylabel("ms")
    latency.legend()
    for name in ("degraded", "refused"):
        pressure.plot(times, [100 * row[name] for row in bins], label=name)
    pressure.set_ylabel("%")
    pressure.set_xlabel("seconds")
    pressure.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
