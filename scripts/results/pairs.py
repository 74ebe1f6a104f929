"""Cascades against plain Mixers at the same accuracy, as `msmlp bench pair` measured them."""

from typing import Any

from scripts.results.text import percent, table

HEAD = """## At the same accuracy, in one run

`msmlp bench pair --weights CASCADE --against MIXER --data DATA --json`: an operating point of the cascade (the
cheapest that is expected to be as accurate, by validation images, unless said otherwise) against the Mixer; both
through the engine, in turns, medians of rounds.
"""


def pair_lines(pairs: list[dict[str, Any]]) -> list[str]:
    """A table; nothing where nothing was measured."""
    if not pairs:
        return []
    head = ["cascade, point", "expected", "Mixer", "expected", "times fewer multiply-adds"]
    head += ["batch at most", "images/s", "Mixer's images/s", "times", "images", "device"]
    return [*HEAD.splitlines(), "", *table(head, [_row(pair) for pair in pairs])]


def _row(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["network"], pair["against"]
    return [
        f"`{ours['weights']}`, `{ours['policy']}`"
        + ("" if pair["chosen"] == "as accurate" else f" ({pair['chosen']})"),
        percent(ours["expected_accuracy"]),
        f"`{theirs['weights']}`",
        percent(theirs["expected_accuracy"]),
        f"{pair['gflops_saved']:.2f}",
        str(pair["max_batch"]),
        f"{ours['images_per_second']:.0f}",
        f"{theirs['images_per_second']:.0f}",
        f"{pair['speedup']:.2f}",
        str(pair["images"]),
        pair["device"],
    ]
