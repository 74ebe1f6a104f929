"""Writes benchmarks/backends.md from what a run has printed.

python -m benchmarks.backends.page [docs/results/backends.json] > benchmarks/backends.md
"""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "backends.json"
NAMES = {"torch": "torch", "onnx": "ONNX Runtime", "onnx-int8": "ONNX Runtime, int8"}

HEAD = """# torch beside ONNX Runtime

    {command} > docs/results/backends.json
    python -m benchmarks.backends.page > benchmarks/backends.md

`{weights}` on {machine}, {cores} cores, load average {load_average} when the run ended. All backends take turns
within each of {rounds} rounds, in one process; figures are medians. [docs/backends.md](../docs/backends.md) says how
each works.

## A stage

Milliseconds a batch, with gather, scatter and answers on the host. torch leaves one core to the web side, as its
threads wait for each other; the parts of ONNX Runtime's batches take all cores.
"""


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD.format(**document),
            *_stage_table(document["stages"]),
            "",
            GPU_LINE,
            "",
            *_ratios(document["stages"]),
            "",
            "## A service",
            "",
            f"`msmlp serve` with each, medians of {document['starts']} starts: seconds from the process's start to",
            "ready, warm-up included, and MiB that it and its children hold (PSS), when ready and after 50 requests of",
            "64 pictures through all stages.",
            "",
            *_service_table(document["services"]),
            "",
            "## Its answers",
            "",
            *_answers(document),
            "",
        ]
    )


GPU_LINE = (
    "On a GPU (torch in bfloat16, ONNX Runtime in float16 with CUDA and TensorRT): not yet measured, needs a GPU."
)


def _stage_table(rows: list[dict[str, Any]]) -> list[str]:
    stages = range(len(rows[0]["torch"]))
    lines = [
        "| batch | stage | " + " | ".join(NAMES.values()) + " |",
        "|---|---|" + "---|" * len(NAMES),
    ]
    for row in rows:
        for k in stages:
            times = " | ".join(f"{row[name][k]:.2f}" for name in NAMES)
            lines.append(f"| {row['bucket'] if k == 0 else ''} | {k + 1} | {times} |")
    return lines


def _ratios(rows: list[dict[str, Any]]) -> list[str]:
    """All stages together: how many times as fast as torch."""
    lines = [
        "All stages of a batch, times as fast as torch:",
        "",
        "| batch | " + " | ".join(list(NAMES.values())[1:]) + " |",
    ]
    lines.append("|---|" + "---|" * (len(NAMES) - 1))
    for row in rows:
        ratios = " | ".join(f"{sum(row['torch']) / sum(row[name]):.2f}" for name in list(NAMES)[1:])
        lines.append(f"| {row['bucket']} | {ratios} |")
    return lines


def _service_table(services: dict[str, Any]) -> list[str]:
    lines = ["| | seconds to ready | MiB when ready | MiB after |", "|---|---|---|---|"]
    for name, title in NAMES.items():
        each = services[name]
        lines.append(f"| {title} | {each['ready_seconds']:.1f} | {each['mib_ready']:.0f} | {each['mib_after']:.0f} |")
    return lines


def _answers(document: dict[str, Any]) -> list[str]:
    answers = document["answers"]
    lines = [
        f"{answers['images']:,} test images; under the thresholds of `{document['point']}`, images that leave at",
        "another exit, or with another label, than with torch.",
        "",
        "| | accuracy of exits | accuracy of the point | largest difference of a score | other exit | other label |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        each = answers["by_backend"][name]
        exits = " / ".join(f"{100 * share:.2f}" for share in each["accuracy"])
        lines.append(
            f"| {title} | {exits} % | {100 * each['point_accuracy']:.2f} % | {each['largest_difference']:.1e} "
            f"| {each['other_exits']} | {each['other_labels']} |"
        )
    return lines


def main() -> None:
    """Read and print."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    sys.stdout.write(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
