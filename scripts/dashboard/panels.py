"""What a panel says; plain data, written out by build.py."""

from dataclasses import dataclass

Query = tuple[str, str]
"""PromQL and legend; `$here` stands for the chosen services, `$inference` for their requests to classify."""

SECONDS, SHARE, NUMBER, BYTES, PER_SECOND = "s", "percentunit", "short", "bytes", "reqps"
IMAGES, GFLOPS, GFLOPS_PER_SECOND = "suffix: images/s", "suffix: GFLOPs", "gflops"


@dataclass(frozen=True)
class Panel:
    """A question's answer over time; `about` is what one sees on its (i).

    `limits` are the values from which it is orange and red. `top` is the end of the scale.
    """

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = NUMBER
    width: int = 8
    limits: tuple[float, ...] = ()
    top: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Stat(Panel):
    """One number, as it is now; with `low_is_bad` it is red below its limit."""

    width: int = 3
    low_is_bad: bool = False


@dataclass(frozen=True)
class Column:
    """Of a table: a title, PromQL that gives one value a row, and its unit."""

    title: str
    expr: str
    unit: str = NUMBER


@dataclass(frozen=True)
class Table:
    """A row for each value of the labels `by`, over the whole time shown; no columns: the labels alone."""

    title: str
    about: str
    by: tuple[str, ...]
    columns: tuple[Column, ...]
    width: int = 24


@dataclass(frozen=True)
class Row:
    """Panels under a question."""

    question: str
    panels: tuple[Panel | Table, ...]
