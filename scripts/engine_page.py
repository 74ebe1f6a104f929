"""Writes benchmarks/engine.md: how the engine is measured, and what `msmlp bench engine` and the soak have shown.

    python -m scripts.engine_page > benchmarks/engine.md

The tables come from docs/results/<name>.bench.json (and <name>.bench-<device>.json) and <name>.soak.json. What is not
there is not on the page. What people have to say about them stands in benchmarks/engine_notes.md and is taken as it is.
"""

import json
import sys
from pathlib import Path
from typing import Any

from scripts.engine_goals import goals

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
NOTES = ROOT / "benchmarks" / "engine_notes.md"

WAYS = ("engine", "full", "masked", "shrinking")

HEAD = """# The engine, measured

Everything in a section below comes from one run on one device:
`msmlp bench engine --weights weights/cifar10-xs --data DATA --json`, about three minutes on two cores. This page is
generated: `python -m scripts.engine_page > benchmarks/engine.md`.

## What is measured

**Saturation.** All images are there at once, in requests of 16; rounds in which every way to serve runs once, and every
stage time is sampled several times, in random order. Images/s are medians of the rounds, ratios the median of the
ratios within each round.

- *t_k(b)*: seconds of stage k for a batch in bucket b, the backend call with gather, scatter and copy-back; the median
  of at least 20 samples.
- *bound*: 1 / Σ_k reach_k · min_b t_k(b) / b, where reach_k is the share of images that enter stage k: what the device
  would do if every batch had its best size and deciding cost nothing.
- *plain*: the same with plain modules (the folded stage without slots) on contiguous batches.
- *full*: every image through all stages, in the one batch size at which that is fastest.
- *masked*: exits are decided and honoured in the answer, but nobody leaves the batch.
- *shrinking*: who leaves makes the batch smaller; survivors of different batches never meet.
- *predicted*: the engine's speed over a baseline's, as the t_k say it should be. Over *full*:
  min_b Σ_k t_k(b) / b over Σ_k reach_k · min_b t_k(b) / b. Over *masked* and *shrinking*: Σ t_k(b) over the batches
  that these ran, over the same sum of the engine's batches.

**Host.** The same loop and scheduler over a backend that computes nothing and answers with recorded scores.

**Load.** Poisson arrivals of requests of 1 to 64 images with the named operating points, through a service in the
benchmark's process: façade, policy, admission, brown-out; no HTTP, no JSON. 100 % is the engine's images/s at
saturation, scaled by the bounds to the mix of thresholds. Latency runs from when a request was due. *Slowdown* is
latency over what a request of that size takes alone with every exit shut, through the same façade. The *ideal* server
is a simulation from the same t_k and the arrivals and exits of the requests that the service answered: first come,
first served, no cost of its own; requests that wait together go together as long as they fit the largest batch. *Late*
is later than `max_wait_ms`. *Front* is the CPU time of the thread with the load generator and the web side of the
service.

**Soak.** `python -m benchmarks.soak --minutes 10 -- --weights weights/cifar10-xs`: an `msmlp serve` process over a
real socket under 80 % of the load it takes in a closed loop.
"""

GPU = """
## Not yet measured: needs a GPU

The same run with `--device cuda`; `benchmarks/gpu_campaign` has it as a step.
"""


def page(results: Path = RESULTS) -> str:
    """The page's text."""
    runs = [(path, json.loads(path.read_text())) for path in sorted(results.glob("*.bench*.json"))]
    runs = [(path, run) for path, run in runs if "caps" in run]
    sections = [run_section(path.name, run) for path, run in runs]
    soaks = [soak_section(path, json.loads(path.read_text())) for path in sorted(results.glob("*.soak*.json"))]
    gpu = "" if any(run["device"].startswith("cuda") for _, run in runs) else GPU
    notes = "\n" + NOTES.read_text() if NOTES.exists() and sections else ""
    return HEAD + "".join(sections) + "".join(soaks) + notes + gpu


def run_section(name: str, run: dict[str, Any]) -> str:
    """One document of `msmlp bench engine`."""
    shares = " / ".join(f"{100 * share:.0f} %" for share in run["exit_share"])
    lines = [
        f"\n## `{name}` on {run['device']}",
        "",
        f"{run['images']} images, policy `{run['policy']}` ({shares} leave at each exit), {run['dtype']}, "
        f"{run['rounds']} rounds; torch {run['torch']}, threads of the stages: {run['threads']}.",
        "",
        *_table(("goal", "measured", ""), goals(run)),
        "",
        "Images/s at saturation:",
        "",
        *_table(
            ("largest batch", "plain", "bound", "engine", "full", "masked", "shrinking"), map(_speeds, run["caps"])
        ),
        "",
        "The engine's speed over each baseline's, measured / predicted:",
        "",
        *_table(("largest batch", "over full", "over masked", "over shrinking"), map(_ratios, run["caps"])),
        "",
        "What each took over Σ t_k(b) of the batches it ran (1: the device was never kept waiting):",
        "",
        *_table(("largest batch", "engine", "full", "masked", "shrinking"), map(_overheads, run["caps"])),
        "",
        "Mean batch of each stage, in which the engine and shrinking batches differ:",
        "",
        *_table(("largest batch", "engine", "shrinking"), map(_batches, run["caps"])),
        *(_loads(run) if run["load"] else []),
    ]
    return "\n".join(lines) + "\n"


def soak_section(path: Path, soak: dict[str, Any]) -> str:
    """One document of `benchmarks.soak`."""
    memory = soak["memory"]
    statuses = ", ".join(f"{count} answered {status}" for status, count in sorted(soak["statuses"].items()))
    verdict = "nothing was wrong" if soak["ok"] else "; ".join(soak["faults"])
    return (
        f"\n## Soak: {soak['minutes']:g} minutes at {100 * soak['load']:.0f} % (`{path.name}`)\n\n"
        f"{soak['requests']} requests, {soak['images_per_second']:.0f} images/s offered: {statuses}; "
        f"p50 {soak['p50_ms']:.1f} ms, p99 {soak['p99_ms']:.1f} ms. "
        f"Memory {memory['settled_mib']:.0f} MiB once settled, {memory['last_mib']:.0f} MiB at the end, "
        f"{memory['slope_mib_per_minute']:+.2f} MiB a minute. "
        f"At the end {soak['at_the_end']['inflight']:.0f} images were in flight. Verdict: {verdict}.\n"
    )


def _loads(run: dict[str, Any]) -> list[str]:
    heads = ("load", "offered", "answered", "p50 ms", "p95 ms", "p99 ms", "queue ms", "mean batch", "mean GFLOPs")
    more = ("load", "slowdown p50", "p99", "ideal p99", "service / ideal", "degraded", "shed", "late", "front cores")
    alone = ", ".join(f"{size}: {ms:.1f}" for size, ms in run["unloaded_ms"].items())
    return [
        "",
        f"Under load, batches up to {run['load_max_batch']}, `--engine {run['load_engine']}`; 100 % is "
        f"{run['load_capacity_images_per_second']:.0f} images/s; {run['load_seconds']:g} s each. Alone with every exit "
        f"shut, a request takes (images: ms) {alone}.",
        "",
        *_table(heads, map(_load, run["load"])),
        "",
        *_table(more, map(_slowdown, run["load"])),
    ]


def _table(heads: tuple[str, ...], rows: Any) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _speeds(cap: dict[str, Any]) -> list[str]:
    speeds = [cap[f"{name}_images_per_second"] for name in ("plain", "bound", "engine")]
    speeds += [cap["baselines"][name] for name in ("full", "masked", "shrinking")]
    return [str(cap["max_batch"]), *(f"{speed:.0f}" for speed in speeds)]


def _ratios(cap: dict[str, Any]) -> list[str]:
    both = ((cap["engine_over"][name], cap["predicted_over"][name]) for name in ("full", "masked", "shrinking"))
    return [str(cap["max_batch"]), *(f"{measured:.2f} / {predicted:.2f}" for measured, predicted in both)]


def _overheads(cap: dict[str, Any]) -> list[str]:
    return [str(cap["max_batch"]), *(f"{cap['seconds_over_stage_seconds'][name]:.3f}" for name in WAYS)]


def _batches(cap: dict[str, Any]) -> list[str]:
    sizes = (cap["mean_batch"][name] for name in ("engine", "shrinking"))
    return [str(cap["max_batch"]), *(" / ".join(f"{size:.1f}" for size in of) for of in sizes)]


def _load(row: dict[str, Any]) -> list[str]:
    times = [row["p50_ms"], row["p95_ms"], row["p99_ms"], row["queue_ms"]["mean"]]
    batches = " / ".join(f"{size:.1f}" for size in row["mean_batch"])
    speeds = [f"{row['offered']:.0f}", f"{row['achieved']:.0f}"]
    return [_percent(row["load"]), *speeds, *(f"{ms:.1f}" for ms in times), batches, f"{row['mean_gflops']:.4f}"]


def _slowdown(row: dict[str, Any]) -> list[str]:
    ideal = row["ideal"]
    slow = [row["slowdown"]["p50"], row["slowdown"]["p99"], ideal["p99_slowdown"], ideal["p99_service_over_ideal"]]
    shares = [_percent(row[name]) for name in ("degraded", "shed", "late")]
    return [_percent(row["load"]), *(f"{value:.2f}" for value in slow), *shares, f"{row['cpu_cores']['front']:.2f}"]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share in (0, 1) or share >= 0.1 else f"{100 * share:.1f} %"


if __name__ == "__main__":
    sys.stdout.write(page())
