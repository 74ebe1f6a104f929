"""What `msmlp bench engine` measured, as lines for people."""

from collections.abc import Iterator
from typing import Any

from msmlp.bench.saturation import BASELINES


def engine_lines(result: dict[str, Any]) -> Iterator[str]:
    """The document, shortened."""
    shares = " / ".join(f"{100 * share:.0f} %" for share in result["exit_share"])
    yield f"{result['images']} images, of which {shares} leave at each exit of {result['policy']}; {result['device']}"
    for cap in result["caps"]:
        yield from _cap_lines(cap)
    host = result["host"]
    alone = ", ".join(f"{us:.2f} at {batch}" for batch, us in host["scheduler_us_per_image_and_stage"].items())
    yield f"host: {result['host_us_per_image']:.1f} us an image; scheduler alone, us an image and stage: {alone};"
    yield (
        f"  a single ticket {host['scheduler_us_single_ticket']:.0f} us in the scheduler, "
        f"{host['facade_us_single_image']:.0f} us through the façade, "
        f"{host['facade_us_first_exit']:.0f} us when it leaves at the first exit"
    )
    for row in result["load"]:
        yield from _load_lines(row)


def _cap_lines(cap: dict[str, Any]) -> Iterator[str]:
    yield f"batches up to {cap['max_batch']}:"
    for name in ("plain", "bound", "engine"):
        yield f"  {name:10} {cap[name + '_images_per_second']:9.0f} images/s"
    for name in BASELINES:
        yield (
            f"  {name:10} {cap['baselines'][name]:9.0f} images/s; engine over it {cap['engine_over'][name]:.2f}, "
            f"predicted {cap['predicted_over'][name]:.2f}"
        )
    yield f"  engine / bound {cap['efficiency']:.3f}, bound / plain {cap['bound_over_plain']:.3f}"


def _load_lines(row: dict[str, Any]) -> Iterator[str]:
    yield (
        f"load {100 * row['load']:3.0f} %: {row['achieved']:7.0f} images/s, p50 {_ms(row['p50_ms'])}, "
        f"p99 {_ms(row['p99_ms'])}, degraded {100 * row['degraded']:.0f} %, shed {100 * row['shed']:.0f} %, "
        f"late {100 * row['late']:.1f} %"
    )
    if row["ideal"]:
        yield (
            f"  slowdown p99 {row['slowdown']['p99']:.2f}, of an ideal server {row['ideal']['p99_slowdown']:.2f}: "
            f"{row['ideal']['p99_service_over_ideal']:.2f} times"
        )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
