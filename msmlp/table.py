"""Answers as a table for a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from msmlp.answer import OperatingPoint, Result

BAR = 10
"""Width of a bar that means certainty."""
LONGEST_NAME = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Table:
    """Lines of text: a header, a row a result, a summary.

    Args:
        names: the files' names, by the results' index.
        model: what `GET /model` says.
        encoding: the terminal's; what it cannot show is replaced.
        top: list further classes below each image.
    """

    def __init__(self, names: list[str], model: Mapping[str, Any], encoding: str, *, top: bool) -> None:
        self._names = [_shortened(name) for name in names]
        self._widths = max(map(len, [*self._names, "file"])), max(map(len, [*model["classes"], "label"]))
        self._full: float = model["exits"][-1]["gflops"]
        self._encoding, self._top = encoding, top
        self._bars = self._can(_EIGHTHS)

    def header(self) -> str:
        """The names of the columns."""
        what = self._what("file", "label", "confidence")
        return f"{what:{len(self._what('', '', '')) + 8 + BAR}} exit    why         GFLOPs  of full       ms"

    def row(self, index: int, result: Result) -> str:
        """The image that is `index` of the names: what it is, which exit said so and why, what it cost."""
        exit = f"{result.exit or '-'} of {result.exits}"
        why = result.reason.replace("_", " ")
        cost = f"{result.gflops:8.3g}  {self._share(result.gflops):>7}"
        first = self._what(self._names[index], result.label or "-", self._bar(result.confidence))
        rows = [f"{first} {exit:<7} {why:<9} {cost} {result.latency_ms:8.1f}"]
        if self._top:
            rows += [self._what("", each.label, self._bar(each.probability)).rstrip() for each in result.top_k[1:]]
        return self._shown("\n".join(rows))

    def summary(self, results: Iterable[Result], point: OperatingPoint) -> str:
        """What it all cost on average, and with which thresholds."""
        costs = [result.gflops for result in results]
        mean = sum(costs) / len(costs)
        counted = "1 image" if len(costs) == 1 else f"{len(costs)} images"
        name = point.name or ", ".join(f"{t:g}" for t in point.thresholds)
        return self._shown(
            f"{counted}: {mean:.3g} GFLOPs on average, {self._share(mean)} of the full cascade's {self._full:.3g}; "
            f"operating point {name} ({point.source}), expected accuracy {100 * point.expected_accuracy:.1f} %"
        )

    def _what(self, name: str, label: str, confidence: str) -> str:
        return f"{name:<{self._widths[0]}}  {label:<{self._widths[1]}}  {confidence}"

    def _share(self, gflops: float) -> str:
        return f"{100 * gflops / self._full:.0f} %"

    def _bar(self, share: float | None) -> str:
        if share is None:
            return " " * (8 + BAR)
        eighths = round(share * BAR * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip() if self._bars else "#" * round(share * BAR)
        return f"{100 * share:5.1f} % {bar:<{BAR}}"

    def _can(self, text: str) -> bool:
        return self._shown(text) == text

    def _shown(self, text: str) -> str:
        # A file's name may hold bytes that are no text.
        return text.encode(self._encoding, "replace").decode(self._encoding, "replace")


def _shortened(name: str) -> str:
    """The end of a long name, where files differ, without control characters."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= LONGEST_NAME else "..." + plain[3 - LONGEST_NAME :]
