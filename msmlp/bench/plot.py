"""One picture of what `msmlp bench engine` measured."""

from pathlib import Path
from typing import Any

from msmlp.bench.saturation import BASELINES

COLOURS = {"plain": "#888", "bound": "#888", "engine": "#2a6"}
WIDTH = 0.13


def draw_engine(result: dict[str, Any], path: Path) -> None:
    """Images/s of every way to serve by batch cap, and latency and slowdown against the offered load, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speed, latency, slowdown) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    _draw_speed(speed, result)
    loads = [100 * row["load"] for row in result["load"]]
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        latency.plot(loads, [row[name] for row in result["load"]], "o-", label=name[:3])
    latency.set(xlabel="offered load, % of capacity", ylabel="ms an image", yscale="log")
    latency.legend()
    answered = [row for row in result["load"] if row["ideal"]]
    loads = [100 * row["load"] for row in answered]
    slowdown.plot(loads, [row["slowdown"]["p99"] for row in answered], "o-", color="#2a6", label="service")
    slowdown.plot(loads, [row["ideal"]["p99_slowdown"] for row in answered], "o--", color="#888", label="ideal server")
    slowdown.set(xlabel="offered load, % of capacity", ylabel="p99 slowdown", yscale="log")
    slowdown.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_speed(axes: Any, result: dict[str, Any]) -> None:
    for n, name in enumerate(("plain", "bound", "engine", *BASELINES)):
        speeds = [cap["baselines"].get(name) or cap[f"{name}_images_per_second"] for cap in result["caps"]]
        places = [place + (n - 2.5) * WIDTH for place in range(len(speeds))]
        axes.bar(places, speeds, WIDTH, label=name, color=COLOURS.get(name), alpha=0.6 if name == "plain" else 1.0)
    axes.set_xticks(range(len(result["caps"])), [str(cap["max_batch"]) for cap in result["caps"]])
    axes.set(xlabel=f"largest batch; {result['policy']} on {result['device']}", ylabel="images/s")
    axes.legend(fontsize="small")
