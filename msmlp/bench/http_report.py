"""What `msmlp bench http` found, as lines for people."""

from collections.abc import Iterator
from typing import Any


def http_lines(result: dict[str, Any]) -> Iterator[str]:
    """A line a row, then how the product compares with the reference."""
    for row in result["load"]:
        at = f"{row['connections']} connections" if row["loop"] == "closed" else f"{row['offered_per_second']:.0f}/s"
        yield (
            f"{row['server']:9} {row['body']:12} {at:15} {row['requests_per_second']:8.1f} requests/s, "
            f"p50 {_unit(row['p50_ms'], 'ms')}, p95 {_unit(row['p95_ms'], 'ms')}, p99 {_unit(row['p99_ms'], 'ms')}, "
            f"CPU {_unit(row['server_cpu_seconds_per_1000'], 's')} a 1,000, statuses {row['statuses']}"
            + (f", {100 * row['over_engine']:.0f} % of its engine's images/s" if "over_engine" in row else "")
        )
    for row in result["ratios"]:
        yield (
            f"{row['body']:12} {row['connections']:4} connections: of the reference's requests/s, "
            f"null {100 * row['null_over_reference']:.0f} %, real {100 * row['real_over_reference']:.0f} %"
        )


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"
