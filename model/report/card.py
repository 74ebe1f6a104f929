"""The model card: the numbers of a weights folder on one split, with three pictures beside them."""

from pathlib import Path
from typing import Any

import numpy as np

from msmlp.model.calibration.plot import plot_frontier
from msmlp.model.errors import OptionError
from msmlp.model.evaluate import calibration_error
from msmlp.model.report.card_text import card_lines
from msmlp.model.report.confusion import confusion_matrix, most_confused, plot_confusion
from msmlp.model.report.measure import Measured
from msmlp.model.report.reliability import plot_reliability
from msmlp.model.report.runs import writing_into
from msmlp.model.training.run_log import command_line
from msmlp.model.weights.calibration import expectation

CARD, CONFUSION, RELIABILITY, FRONTIER = "card.md", "confusion.png", "reliability.png", "frontier.png"
START, END = "<!-- measured by msmlp report card -->\n", "<!-- /measured -->\n"


def write_card(measured: Measured, policy: str, out: Path) -> dict[str, Any]:
    """Write the card and its pictures into `out` → what stands on the card.

    Raises:
        OptionError: an unknown policy, or a card.md in `out` without a place for the numbers.
    """
    result = card(measured, policy)
    text = filled(out / CARD, measured.weights.manifest.name, card_lines(result))
    answers = measured.answers(measured.point(policy).thresholds)
    matrix = confusion_matrix(measured.images.labels, answers, len(measured.classes))
    of = f"{measured.weights.manifest.name}: {len(measured.images)} {measured.split} images"
    with writing_into(out):
        plot_confusion(matrix, measured.classes, f"{of}, operating point {policy}", out / CONFUSION)
        plot_reliability(measured.outputs, measured.correct, of, out / RELIABILITY)
        plot_frontier(measured.weights.folder, out / FRONTIER)
        (out / CARD).write_text(text)
    return result


def card(measured: Measured, policy: str) -> dict[str, Any]:
    """The numbers on the card, as one document."""
    manifest, file = measured.weights.manifest, measured.calibration.file
    labels, classes = measured.images.labels, measured.classes
    right = measured.answers(measured.point(policy).thresholds) == labels
    matrix = confusion_matrix(labels, measured.answers(measured.point(policy).thresholds), len(classes))
    gflops = np.array(manifest.gflops_cumulative)
    return {
        "name": manifest.name,
        "network": manifest.cascade.model_dump(mode="json"),
        "parameters": sum(array.size for array in measured.weights.state.values()),
        "training": manifest.training,
        "data": measured.data,
        "split": measured.split,
        "images": len(labels),
        "device": measured.device,
        "dtype": measured.dtype,
        "policy": policy,
        "exit_policy": file.exit_policy,
        "exits": [
            {
                "exit": k + 1,
                "gflops": float(gflops[k]),
                "accuracy": float(measured.correct[:, k].mean()),
                "temperature": file.temperatures[k],
                "ece": calibration_error(measured.outputs, measured.correct, k),
            }
            for k in range(len(gflops))
        ],
        "operating_points": [_point(measured, point.name, gflops) for point in measured.named_points()],
        "classes": [
            {"class": name, "images": int((labels == k).sum()), "accuracy": float(right[labels == k].mean())}
            for k, name in enumerate(classes)
            if (labels == k).any()
        ],
        "confused": [
            {"class": classes[i], "taken_for": classes[j], "images": images}
            for i, j, images in most_confused(matrix, 5)
        ],
        "command": command_line(),
        "files": [CARD, CONFUSION, RELIABILITY, FRONTIER],
    }


def _point(measured: Measured, name: str, gflops: Any) -> dict[str, Any]:
    expected = measured.point(name)
    got = expectation(measured.outputs.scores, measured.correct, gflops, np.array(expected.thresholds, dtype=float))
    return {
        "name": name,
        "expected_accuracy": expected.expected_accuracy,
        "accuracy": got.accuracy,
        "standard_error": got.standard_error,
        "mean_gflops": got.mean_gflops,
        "exit_share": list(got.exit_share),
    }


def filled(path: Path, name: str, lines: list[str]) -> str:
    """The card with `lines` as its measured part; what people wrote around it is kept."""
    if not path.exists():
        return f"# `{name}`\n\n{START}{_joined(lines)}{END}"
    before, start, rest = path.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise OptionError(
            "out",
            f"{path} has no place for the numbers between {START.strip()} and {END.strip()}; move it away",
        )
    return before + START + _joined(lines) + END + after


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
