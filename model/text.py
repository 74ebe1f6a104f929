"""Numbers and tables as text, the same on the command line, on model cards and in the docs."""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def percent(share: float, digits: int = 2) -> str:
    """A share with that many decimals: `88.20 %`."""
    return f"{100 * share:.{digits}f} %"


def accurate(accuracy: float, error: float, digits: int = 2) -> str:
    """An accuracy with its standard error in points: `88.20 % ± 0.47`."""
    return f"{percent(accuracy, digits)} ± {100 * error:.{digits}f}"


def shares(values: Iterable[float]) -> str:
    """Shares in whole percents: `60 % / 30 % / 10 %`."""
    return " / ".join(percent(share, 0) for share in values)


def kept(promise: Mapping[str, Any]) -> str:
    """Expected minus reached accuracy in points, with its standard error: `+0.82 ± 0.67`."""
    return f"{100 * promise['expected_minus_reached']:+.2f} ± {100 * promise['standard_error']:.2f}"


def has_own_name(point: str) -> bool:
    """Whether an operating point is called other than p01, p02, ..."""
    return not re.fullmatch(r"p\d+", point)


def command_line() -> str:
    """The command that runs, to repeat it."""
    return shlex.join(["msmlp", *sys.argv[1:]])


def printable(text: str) -> str:
    """Text for a terminal, where control characters of a file's name would do something."""
    return "".join(each if each.isprintable() else "?" for each in text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
