"""One picture of what `msmlp bench engine` measured."""

from pathlib import Path
from typing import Any


def draw_engine(result: dict[str, Any], path: Path) -> None:
    """Images/s of every way to serve, and latency against the offered load, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speed, latency) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = {name: result[f"{name}_images_per_second"] for name in ("plain", "bound", "engine")} | result["baselines"]
    speed.barh(list(rows), list(rows.values()), color=["#888"] * 2 + ["#2a6"] + ["#69c"] * len(result["baselines"]))
    speed.invert_yaxis()
    speed.set_xlabel(f"images/s on {result['device']}, {result['policy']}, batches up to {result['max_batch']}")
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        latency.plot(
            [100 * row["load"] for row in result["load"]], [row[name] for row in result["load"]], "o-", label=name[:3]
        )
    latency.set_xlabel("offered load, % of the engine's images/s")
    latency.set_ylabel("ms an image")
    latency.set_yscale("log")
    latency.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
