"""Speed, as `msmlp bench engine` measured it."""

from typing import Any

from scripts.results.text import shares


def bench_lines(bench: dict[str, Any]) -> list[str]:
    """Images/s at saturation beside the baselines, and latency under load."""
    speeds = {
        "plain modules at their best batch, by the shares that reach each stage": bench["plain_images_per_second"],
        "the same through the backend (*bound*)": bench["bound_images_per_second"],
        "the engine": bench["engine_images_per_second"],
        "every image through every stage": bench["baselines"]["full"],
        "exits decided, but nobody leaves the batch": bench["baselines"]["masked"],
        "batches that shrink": bench["baselines"]["shrinking"],
    }
    return [
        f"Speed on {bench['device']} with policy `{bench['policy']}` ({shares(bench['exit_share'])} leave at each "
        "exit):",
        f"{bench['images']} test images in batches of at most {bench['max_batch']}, medians of {bench['rounds']} "
        "interleaved rounds of one run; `benchmarks/engine.md` says how, and the rest of it.",
        f"The engine reaches {100 * bench['efficiency']:.1f} % of its bound, {bench['engine_over']['full']:.2f} times "
        f"the whole cascade and {bench['engine_over']['shrinking']:.2f} times shrinking batches (medians of rounds); "
        f"scheduler and loop take {bench['host_us_per_image']:.1f} µs an image.",
        "",
        f"`msmlp bench engine --weights {bench['weights']} --data DATA --images {bench['images']} "
        f"--rounds {bench['rounds']} --json`",
        "",
        "| | images/s |",
        "|---|---|",
        *(f"| {name} | {speed:.0f} |" for name, speed in speeds.items()),
        "",
        "Poisson arrivals of requests of 1 to 64 images with mixed operating points, the client in the same process:",
        "",
        "| offered, of capacity | answered images/s | p50 ms | p95 ms | p99 ms | degraded | shed |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {100 * row['load']:.0f} % | {row['achieved']:.0f} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} "
            f"| {row['p99_ms']:.1f} | {100 * row['degraded']:.0f} % | {100 * row['shed']:.0f} % |"
            for row in bench["load"]
        ),
    ]
