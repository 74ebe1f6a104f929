"""Markdown that several parts need."""

from collections.abc import Iterable, Sequence

NOT_YET = "not yet measured: needs a GPU"


def percent(share: float) -> str:
    """A share with two places."""
    return f"{100 * share:.2f} %"


def shares(values: Iterable[float]) -> str:
    """The shares that leave at each exit."""
    return " / ".join(f"{100 * value:.0f} %" for value in values)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_row(head), "|---" * len(head) + "|", *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
