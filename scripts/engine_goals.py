"""What the engine is meant to reach, and whether a document of `msmlp bench engine` shows it."""

from collections.abc import Iterator
from typing import Any

SCHEDULER_US = {"1024": 0.5, "256": 1.0}


def goals(run: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The goal, what was measured, and `held` or `missed`."""
    for cap in run["caps"]:
        yield from _saturation(cap)
    yield from _host(run["host"])
    rows = {row["load"]: row for row in run["load"]}
    if 0.8 in rows:
        yield _slowdown(rows[0.8], gpu=run["device"].startswith("cuda"))
    if 1.5 in rows:
        yield from _overload(rows[1.5])


def _saturation(cap: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    at = f"at cap {cap['max_batch']}"
    over, efficiency = cap["bound_over_plain"], cap["efficiency"]
    yield f"bound ≥ 0.9 of plain, {at}", f"{over:.3f}", _held(over >= 0.9)
    yield f"engine ≥ 0.95 of the bound, {at}", f"{efficiency:.3f}", _held(efficiency >= 0.95)
    for name, within in (("full", 0.1), ("shrinking", 0.05)):
        quotient = cap["measured_over_predicted"][name]
        goal = f"over {name}: measured within {100 * within:.0f} % of predicted, {at}"
        yield goal, f"{100 * (quotient - 1):+.1f} %", _held(abs(quotient - 1) <= within)


def _host(host: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for batch, most in SCHEDULER_US.items():
        us = host["scheduler_us_per_image_and_stage"][batch]
        yield f"scheduler ≤ {most} µs an image and stage, batches of {batch}", f"{us:.2f}", _held(us <= most)
    single, facade = host["scheduler_us_single_ticket"], host["facade_us_single_image"]
    yield "a single ticket ≤ 60 µs in the scheduler", f"{single:.0f}", _held(single <= 60)
    goal = "a single image ≤ 250 µs through the façade, null backend"
    yield f"{goal}, all stages", f"{facade:.0f}", _held(facade <= 250)
    first = host["facade_us_first_exit"]
    yield f"{goal}, leaving at the first exit", f"{first:.0f}", _held(first <= 250)


def _slowdown(row: dict[str, Any], *, gpu: bool) -> tuple[str, str, str]:
    if gpu:
        p99 = row["slowdown"]["p99"]
        return "p99 slowdown ≤ 3 at 80 %", f"{p99:.2f}", _held(p99 <= 3)
    over = row["ideal"]["p99_service_over_ideal"]
    return "p99 slowdown ≤ 1.5 of the ideal server's at 80 %", f"{over:.2f}", _held(over <= 1.5)


def _overload(row: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    late, before = row["late"], row["shed_before_top_level"]
    yield "at 150 % everything accepted is answered in time", f"{100 * late:.2f} % late", _held(late == 0)
    measured = "nothing was shed" if before is None else f"{100 * before:.1f} % of what was shed"
    yield "at 150 % nothing is shed before the last brown-out level", measured, _held(not before)


def _held(yes: bool) -> str:
    return "held" if yes else "missed"
