"""Writes docs/results.md from the weights folders and what `msmlp evaluate --json` printed for them.

    python -m scripts.results_page > docs/results.md

For every weights/<name>/ the page takes docs/results/<name>.test.json and, where there are any, <name>.policies.json
and <name>.bench.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Results

Accuracy is top-1 on the test images named in each table, looked at once a calibration, with everything chosen on
validation images. GFLOPs are multiply-adds / 1e9 by fvcore's rules, as served (reuse folded), padding not counted. One
standard error of an accuracy over 5,000 images is 0.55 points at 82 %.

This page is generated: `python -m scripts.results_page > docs/results.md`.
"""

TAIL = """
## Not yet measured: needs a GPU

Training of `m`, `paper-s`, `mixer-s`, `paper-b` and `mixer-b` on CIFAR-10 and CIFAR-100; bf16 serving; images/s of the
engine on a GPU. `benchmarks/gpu_campaign` does all of it as one command.
"""


def page() -> str:
    """The page's text."""
    folders = sorted(path.parent for path in (ROOT / "weights").glob("*/manifest.json"))
    return HEAD + "".join(section(folder) for folder in folders) + TAIL


def section(folder: Path) -> str:
    """One weights folder: how it was made, every exit, every operating point."""
    manifest = json.loads((folder / "manifest.json").read_text())
    test = json.loads((ROOT / "docs" / "results" / f"{folder.name}.test.json").read_text())
    training, validation = manifest["training"], manifest["training"]["validation"]
    lines = [
        f"\n## `{folder.name}`",
        "",
        f"- data: {training['data']}, {training['images']} images to train on, {validation['images']} to validate, "
        f"{test['images']} to test; seed {training['seed']}",
        f"- command (commit {training['git_commit']}): `{training['command']}`",
        f"- {training['epochs']} epochs on {training['device']}, median {training['images_per_second']:.0f} images/s "
        "(the machine was shared with other work while it trained); torch " + training["torch"],
        f"- measured by `msmlp evaluate --weights {test['weights']} --data {test['data']} --split test --json`",
        "",
        f"![curves](../weights/{folder.name}/curves.png)",
        "",
        *_exits(manifest, test),
        "",
        *_points(folder, test),
    ]
    policies = ROOT / "docs" / "results" / f"{folder.name}.policies.json"
    if policies.exists():
        lines += ["", *_policies(json.loads(policies.read_text()))]
    bench = ROOT / "docs" / "results" / f"{folder.name}.bench.json"
    if bench.exists():
        lines += ["", *_bench(json.loads(bench.read_text()))]
    return "\n".join(lines) + "\n"


def _exits(manifest: dict[str, Any], test: dict[str, Any]) -> list[str]:
    validation = manifest["training"]["validation"]["images"]
    rows = [
        f"| exit | tokens | GFLOPs | validation accuracy ({validation} images) "
        f"| test accuracy ({test['images']} images) | ECE on test |",
        "|---|---|---|---|---|---|",
    ]
    cascade = manifest["cascade"]
    for stage, result, exit in zip(cascade["stages"], manifest["results"], test["exits"], strict=True):
        tokens = (cascade["image_size"] // stage["patch"]) ** 2
        rows.append(
            f"| {exit['exit']} | {tokens} | {exit['gflops']:.4f} | {_percent(result['accuracy'])} "
            f"| {_percent(exit['accuracy'])} | {exit['ece']:.3f} |"
        )
    return rows


def _points(folder: Path, test: dict[str, Any]) -> list[str]:
    calibration = json.loads((folder / "calibration.json").read_text())
    temperatures = " / ".join(f"{temperature:.3f}" for temperature in calibration["temperatures"])
    rows = [
        f"Exit policy `{calibration['exit_policy']}`, temperatures {temperatures}. Operating points: thresholds chosen",
        f"jointly on {calibration['images']} validation images and applied to the test images. What is expected of a",
        "point is cross-fitted in five folds: measured on images its thresholds were not chosen on.",
        "",
        f"![frontier](frontier-{folder.name}.png)",
        "",
        "| point | expected accuracy ± s.e. | test accuracy | expected GFLOPs | test GFLOPs | share at each exit |",
        "|---|---|---|---|---|---|",
    ]
    for expected, got in zip(calibration["operating_points"], test["operating_points"], strict=True):
        shares = " / ".join(f"{100 * share:.0f} %" for share in got["exit_share"])
        rows.append(
            f"| {got['name']} | {_percent(expected['expected_accuracy'])} ± {100 * expected['standard_error']:.2f} "
            f"| {_percent(got['accuracy'])} | {expected['mean_gflops']:.4f} | {got['mean_gflops']:.4f} "
            f"| {shares} |"
        )
    return rows


def _policies(compared: dict[str, Any]) -> list[str]:
    """Accuracy on the images the thresholds were chosen on, and what is left of the difference on held-out ones."""
    base, *others = compared["policies"]
    rows = [
        f"Exit policies at equal cost, on the same {compared['images']} validation images. First what the joint",
        f"frontier reaches on the images it was solved on; then the cross-fitted difference to `{base}`, in points",
        "± s.e.:",
        "",
        f"`python -m benchmarks.exit_policies --weights {compared['weights']} --data {compared['data']}`",
        "",
        "| mean GFLOPs at most | "
        + " | ".join([f"`{name}`" for name in (base, *others)] + [f"`{name}`, held out" for name in others])
        + " |",
        "|---" * (1 + len(compared["policies"]) + len(others)) + "|",
    ]
    for i, budget in enumerate(compared["budgets_gflops"]):
        cells = [_percent(policy["in_sample"][i]) for policy in compared["policies"].values()]
        for name in others:
            policy = compared["policies"][name]
            cells.append(f"{100 * policy['gain'][i]:+.2f} ± {100 * policy['gain_standard_error'][i]:.2f}")
        rows.append(f"| {budget:.4f} | " + " | ".join(cells) + " |")
    return rows


def _bench(bench: dict[str, Any]) -> list[str]:
    shares = " / ".join(f"{100 * share:.0f} %" for share in bench["exit_share"])
    speeds = {
        "plain modules at their best batch, by the shares that reach each stage": bench["plain_images_per_second"],
        "the same through the backend (*bound*)": bench["bound_images_per_second"],
        "the engine": bench["engine_images_per_second"],
        "every image through every stage": bench["baselines"]["full"],
        "exits decided, but nobody leaves the batch": bench["baselines"]["masked"],
        "batches that shrink": bench["baselines"]["shrinking"],
    }
    return [
        f"Speed on {bench['device']} with policy `{bench['policy']}` ({shares} leave at each exit):",
        f"{bench['images']} test images in batches of at most {bench['max_batch']}, medians of {bench['rounds']} "
        "interleaved rounds of one run; `benchmarks/engine.md` says how, and the rest of it.",
        f"The engine reaches {100 * bench['efficiency']:.1f} % of its bound, {bench['engine_over']['full']:.2f} times "
        f"the whole cascade and {bench['engine_over']['shrinking']:.2f} times shrinking batches (medians of rounds); "
        f"scheduler and loop take {bench['host_us_per_image']:.1f} µs an image.",
        "",
        f"`msmlp bench engine --data DATA --images {bench['images']} --rounds {bench['rounds']} --json`",
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


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    sys.stdout.write(page())
