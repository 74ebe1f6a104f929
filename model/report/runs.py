"""Tables and pictures of many runs, as files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msmlp.model.errors import OptionError
from msmlp.model.report.curves import plot_curves
from msmlp.model.report.run import Found
from msmlp.model.report.scatter import plot_scatter
from msmlp.model.report.tables import report

REPORT, CURVES, SCATTER = "report.md", "curves.png", "accuracy-against-gflops.png"


def write_report(found: Found, out: Path) -> list[Path]:
    """Write the page and its pictures into `out` → their paths."""
    with writing_into(out):
        plot_curves(found.runs, out / CURVES)
        plot_scatter(found.runs, out / SCATTER)
        (out / REPORT).write_text(report(found, (CURVES, SCATTER)))
    return [out / name for name in (REPORT, CURVES, SCATTER)]


@contextmanager
def writing_into(path: Path) -> Iterator[None]:
    """Make a folder for results and write there; OptionError when either cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", f"{path} cannot be made a folder ({error.strerror})") from None
    try:
        yield
    except OSError as error:
        raise OptionError("out", f"{path} cannot be written to ({error.strerror})") from None
