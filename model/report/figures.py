"""Empty paper for the pictures of a report. matplotlib is imported here and nowhere else in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 110
TEACHER_MARK = "*"


def paper(width: float, height: float) -> "Figure":
    """A figure of so many inches that needs no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours(count: int) -> list[Any]:
    """As many colours as there are lines to tell apart."""
    from matplotlib import colormaps

    if count <= 10:
        return [colormaps["tab10"](i) for i in range(count)]
    return [colormaps["turbo"](0.05 + 0.9 * i / (count - 1)) for i in range(count)]


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG that does not depend on when it was drawn."""
    figure.savefig(path, format="png", dpi=DOTS, metadata={"Software": None})
