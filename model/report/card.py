"""The model card: the numbers of a weights folder on one split, with three pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msmlp.model.errors import OptionError
from msmlp.model.evaluate import Measured
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.report.plots import confusion_matrix, most_confused, plot_confusion, plot_frontier, plot_reliability
from msmlp.model.text import accurate, command_line, kept, percent, shares, table
from msmlp.model.weights.info import audit_record

CARD, CONFUSION, RELIABILITY, FRONTIER = "card.md", "confusion.png", "reliability.png", "frontier.png"
START, END = "<!-- measured by msmlp report card -->\n", "<!-- /measured -->\n"


def write_card(measured: Measured, policy: str, out: Path) -> dict[str, Any]:
    """Write the card and its pictures into `out` → the numbers on the card.

    OptionError for an unknown policy, or a card.md in `out` without the markers.
    """
    result = card(measured, policy)
    text = filled(out / CARD, measured.weights.manifest.name, card_lines(result))
    of = f"{measured.weights.manifest.name}: {len(measured.images)} {measured.split} images"
    title = f"{of}, operating point {policy}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", f"{out} cannot be made a folder ({error.strerror})") from None
    try:
        plot_confusion(_confusion(measured, policy), measured.classes, title, out / CONFUSION)
        plot_reliability(measured.outputs, measured.correct, of, out / RELIABILITY)
        plot_frontier(measured.weights.manifest.name, measured.calibration, out / FRONTIER)
        (out / CARD).write_text(text)
    except OSError as error:
        raise OptionError("out", f"{out} cannot be written to ({error.strerror})") from None
    return result


def card(measured: Measured, policy: str) -> dict[str, Any]:
    """The numbers on the card, as one document."""
    manifest, file, classes = measured.weights.manifest, measured.calibration.file, measured.classes
    matrix = _confusion(measured, policy)
    return {
        "name": manifest.name,
        "network": manifest.cascade.model_dump(mode="json"),
        "parameters": sum(array.size for array in measured.weights.state.values()),
        "training": manifest.training,
        "data": measured.data,
        "split": measured.split,
        "images": len(measured.images),
        "device": measured.device,
        "dtype": measured.dtype,
        "policy": policy,
        "exit_policy": file.exit_policy,
        "exits": [
            {**row, "temperature": temperature}
            for row, temperature in zip(measured.exits(), file.temperatures, strict=True)
        ],
        "operating_points": [
            {
                "name": point.name,
                "same_as": point.same_as,
                "expected_accuracy": point.expected_accuracy,
                "expected_standard_error": point.standard_error,
                "accuracy": reached.accuracy,
                "standard_error": reached.standard_error,
                "mean_gflops": reached.mean_cost,
                "exit_share": list(reached.exit_share),
                "promise": measured.promise(point),
            }
            for point, reached in ((point, measured.reached(point)) for point in measured.named_points())
        ],
        "audit": audit_record(manifest, measured.calibration),
        "labels": list(classes),
        "classes": measured.by_class(measured.right(measured.point(policy))),
        "confused": [
            {"class": classes[i], "taken_for": classes[j], "images": count} for i, j, count in most_confused(matrix, 5)
        ],
        "command": command_line(),
        "files": [CARD, CONFUSION, RELIABILITY, FRONTIER],
    }


def _confusion(measured: Measured, policy: str) -> Any:
    answers = measured.answers(measured.point(policy).thresholds)
    return confusion_matrix(measured.images.labels, answers, len(measured.classes))


def filled(path: Path, name: str, lines: list[str]) -> str:
    """The card at `path` with `lines` as its measured part; keeps the rest of an existing card."""
    measured = START + "\n".join(lines) + "\n" + END
    if not path.exists():
        return f"# `{name}`\n\n{measured}"
    before, start, rest = path.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise OptionError("out", f"{path} lacks the markers {START.strip()} and {END.strip()}; move or delete it")
    return before + measured + after


def card_lines(card: dict[str, Any]) -> list[str]:
    return [
        *_facts(card),
        "",
        *table(
            ("exit", "GFLOPs", "accuracy", "expected - reached ± s.e.", "temperature", "calibration error (ECE)"),
            map(_exit, card["exits"]),
        ),
        "",
        *table(
            (
                "operating point",
                "accuracy ± s.e.",
                "expected ± s.e.",
                "expected - reached ± s.e.",
                "mean GFLOPs",
                "share per exit",
            ),
            map(_point, card["operating_points"]),
        ),
        "",
        _audit(card),
        "",
        *_by_class(card),
        "",
        f"![confusion]({CONFUSION})",
        "",
        f"![reliability of each exit]({RELIABILITY})",
        "",
        f"![frontier]({FRONTIER})",
    ]


def _exit(row: dict[str, Any]) -> tuple[str, ...]:
    temperature, ece = f"{row['temperature']:.2f}", f"{row['ece']:.3f}"
    return row["exit"], _gflops(row["gflops"]), percent(row["accuracy"]), _kept(row), temperature, ece


def _point(row: dict[str, Any]) -> tuple[str, ...]:
    name = f"`{row['name']}`" + (f", same as `{row['same_as']}`" if row["same_as"] else "")
    reached = accurate(row["accuracy"], row["standard_error"])
    expected = accurate(row["expected_accuracy"], row["expected_standard_error"])
    return name, reached, expected, _kept(row), _gflops(row["mean_gflops"]), shares(row["exit_share"])


def _kept(row: dict[str, Any]) -> str:
    return kept(row["promise"]) if row["promise"] else ""


def _audit(card: dict[str, Any]) -> str:
    """How far the promises held on images that chose nothing."""
    audit = card["audit"]
    doubt = f" {audit['leak']}; the accuracy on them may be too high." if audit["leak"] else ""
    if not audit["images"]:
        return f"**No audit set**: {audit['reason']}.{doubt}"
    exits = [f"exit {k} {kept(row)}" for k, row in enumerate(audit["exits"], 1)]
    points = [
        f"`{row['name']}` {kept(audit['operating_points'][row['name']])}"
        for row in card["operating_points"]
        if row["name"] in audit["operating_points"]
    ]
    return (
        f"**Audit**: {audit['images']} training images that were held out and chose nothing. Expected minus reached "
        f"accuracy ± s.e., in points: {', '.join(exits + points)}.{doubt}"
    )


def _network(card: dict[str, Any]) -> list[str]:
    """The network, and how it was trained."""
    training, cost = card["training"], _gflops(card["exits"][-1]["gflops"])
    if card["network"].get("kind") == "imported":
        of = ", ".join(training.get("imported", []))
        return [
            f"- **Network**: imported graphs ({of}), at most {cost} GFLOPs (multiply-adds) per image.",
            f"- **Calibrated** on {training['validation']['images']} images of {training.get('data', '?')}.",
        ]
    teacher, start = (training.get("teacher") or {}).get("name"), training.get("init")
    return [
        f"- **Network**: {architecture(card['network'])}; {card['parameters']:,} parameters, "
        f"at most {cost} GFLOPs (multiply-adds) per image.",
        f"- **Trained** on {training.get('images', '?')} images of {training.get('data', '?')}, "
        f"{training.get('epochs', '?')} epochs on {training.get('device', '?')}, seed {training.get('seed', '?')}, "
        + (f"with the teacher `{teacher}`" if teacher else "without distillation")
        + (f", started from `{start['name']}` (sha256 {start['sha256'][:12]})." if start else "."),
    ]


def _facts(card: dict[str, Any]) -> list[str]:
    lines, training = _network(card), card["training"]
    commit = f" (commit {training['git_commit']})" if training.get("git_commit") else ""
    if training.get("command"):
        lines.append(f"- **Command**{commit}: `{training['command']}`")
    lines.append(
        f"- **Measured** on {card['images']} {card['split']} images of {card['data']}, on {card['device']} in "
        f"{card['dtype']}, exit policy `{card['exit_policy']}`: `{card['command']}`"
    )
    names = ", ".join(card["labels"])
    lines.append(f"- **Classes** ({len(card['labels'])}): {names}. Every image gets one of these labels.")
    return lines


def _by_class(card: dict[str, Any]) -> list[str]:
    ranked = sorted(card["classes"], key=lambda row: -row["accuracy"])
    best, worst = ranked[0], ranked[-1]
    lines = [
        f"By class, at `{card['policy']}`: best {best['class']} ({percent(best['accuracy'])} of {best['images']}), "
        f"worst {worst['class']} ({percent(worst['accuracy'])} of {worst['images']})."
    ]
    if card["confused"]:
        said = ", ".join(f"{row['class']} for {row['taken_for']} ({row['images']})" for row in card["confused"])
        lines.append(f"Most frequent mistakes: {said}.")
    return lines


def architecture(network: dict[str, Any]) -> str:
    """A cascade's configuration in brief: sizes, and what differs from the defaults."""
    cascade = CascadeConfig.model_validate(network)
    stages = cascade.stages
    parts = [f"{_slashed(cascade.tokens(k) for k in range(len(stages)))} tokens"]
    parts.append(f"width {_slashed(stage.width for stage in stages)}")
    parts.append(f"{_slashed(stage.depth for stage in stages)} blocks")
    parts += [f"reuse {cascade.reuse}"] if len(stages) > 1 else []
    parts += [] if cascade.reuse_norm else ["reuse_norm False"]
    if any(stage.overlap for stage in stages):
        parts.append(f"overlap {_slashed(stage.overlap for stage in stages)}")
    return ", ".join(parts)


def _slashed(values: Iterable[Any]) -> str:
    return "/".join(str(value) for value in values)


def _gflops(cost: float) -> str:
    return f"{cost:.4f}" if cost < 1 else f"{cost:.2f}"
