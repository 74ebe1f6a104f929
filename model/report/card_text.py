"""A card's numbers as Markdown."""

from typing import Any

from msmlp.model.report.run import Run, architecture
from msmlp.model.report.tables import gflops


def card_lines(card: dict[str, Any]) -> list[str]:
    """The lines of the measured part."""
    return [
        *_facts(card),
        "",
        "| exit | GFLOPs | accuracy | temperature | calibration error (ECE) |",
        "|---|---|---|---|---|",
        *(
            f"| {row['exit']} | {gflops(row['gflops'])} | {_percent(row['accuracy'])} | {row['temperature']:.2f} "
            f"| {row['ece']:.3f} |"
            for row in card["exits"]
        ),
        "",
        "| operating point | accuracy ± s.e. | expected | mean GFLOPs | leave at each exit |",
        "|---|---|---|---|---|",
        *(
            f"| `{point['name']}` | {_percent(point['accuracy'])} ± {100 * point['standard_error']:.2f} "
            f"| {_percent(point['expected_accuracy'])} | {gflops(point['mean_gflops'])} "
            f"| {_shares(point['exit_share'])} |"
            for point in card["operating_points"]
        ),
        "",
        *_by_class(card),
        "",
        "![confusion](confusion.png)",
        "",
        "![reliability of each exit](reliability.png)",
        "",
        "![frontier](frontier.png)",
    ]


def _facts(card: dict[str, Any]) -> list[str]:
    training = card["training"]
    teacher, start = (training.get("teacher") or {}).get("name"), training.get("init")
    commit = f" (commit {training['git_commit']})" if training.get("git_commit") else ""
    lines = [
        f"- **Network**: {_network(card)}; {card['parameters']:,} parameters, "
        f"{gflops(card['exits'][-1]['gflops'])} GFLOPs (multiply-adds) at most.",
        f"- **Trained** on {training.get('images', '?')} images of {training.get('data', '?')}, "
        f"{training.get('epochs', '?')} epochs on {training.get('device', '?')}, seed {training.get('seed', '?')}, "
        + (f"with the teacher `{teacher}`" if teacher else "without distillation")
        + (f", started from `{start['name']}` (sha256 {start['sha256'][:12]})." if start else "."),
    ]
    if training.get("command"):
        lines.append(f"- **Command**{commit}: `{training['command']}`")
    lines.append(
        f"- **Measured** on {card['images']} {card['split']} images of {card['data']}, on {card['device']} in "
        f"{card['dtype']}, exit policy `{card['exit_policy']}`: `{card['command']}`"
    )
    names = ", ".join(row["class"] for row in card["classes"])
    lines.append(f"- **Classes** ({len(card['classes'])}): {names}. Any other picture gets one of these all the same.")
    return lines


def _by_class(card: dict[str, Any]) -> list[str]:
    ranked = sorted(card["classes"], key=lambda row: -row["accuracy"])
    best, worst = ranked[0], ranked[-1]
    lines = [
        f"By class, at `{card['policy']}`: best {best['class']} ({_percent(best['accuracy'])} of {best['images']}), "
        f"worst {worst['class']} ({_percent(worst['accuracy'])} of {worst['images']})."
    ]
    if card["confused"]:
        said = ", ".join(f"{row['class']} for {row['taken_for']} ({row['images']})" for row in card["confused"])
        lines.append(f"Most often taken for another: {said}.")
    return lines


def _network(card: dict[str, Any]) -> str:
    bare = Run(
        name=card["name"],
        folder="",
        kind="cascade",
        finished=True,
        network=card["network"],
        epochs_done=0,
        exits=[],
    )
    return architecture(bare)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _shares(shares: list[float]) -> str:
    return " / ".join(f"{100 * share:.0f} %" for share in shares)
