"""Runs as Markdown: one row a run."""

from collections import Counter
from collections.abc import Iterable

from msmlp.model.report.run import Found, Run, TeacherName, architecture

NOTHING = "-"

COLUMNS = (
    "run",
    "network",
    "recipe",
    "teacher",
    "seed",
    "epochs",
    "data",
    "images (train / validation)",
    "device",
    "images/s",
    "validation accuracy of each exit, %",
    "GFLOPs of each exit",
    "commit",
    "command",
)


def report(found: Found, pictures: Iterable[str] = ()) -> str:
    """The whole page: the table, the pictures (file names), and what was left out."""
    unfinished = sum(not run.finished for run in found.runs)
    counted = f"{len(found.runs)} run{'s' if len(found.runs) != 1 else ''}"
    lines = ["# Runs", "", f"{counted}, {unfinished} unfinished. Accuracy is on validation images,"]
    lines += ["GFLOPs are multiply-adds / 1e9 as served (a teacher's: of its convolutions and its head).", ""]
    lines += runs_table(found.runs)
    for picture in pictures:
        lines += ["", f"![{picture.removesuffix('.png')}]({picture})"]
    if found.skipped:
        lines += ["", "Left out:", "", *(f"- {line}" for line in found.skipped)]
    return "\n".join(lines) + "\n"


def runs_table(runs: list[Run]) -> list[str]:
    """The lines of a table, in the order of `runs`."""
    names = labels(runs)
    rows = [_cells(run, name, runs) for run, name in zip(runs, names, strict=True)]
    return [_row(COLUMNS), "|---" * len(COLUMNS) + "|", *(_row([_safe(cell) for cell in row]) for row in rows)]


def labels(runs: list[Run]) -> list[str]:
    """A name for each run: its own, and its folder where two have the same."""
    often = Counter(run.name for run in runs)
    return [run.name if often[run.name] == 1 else f"{run.name} ({run.folder})" for run in runs]


def _cells(run: Run, name: str, runs: list[Run]) -> list[str]:
    network = architecture(run)
    images = " / ".join(_shown(number) for number in (run.images, run.validation_images))
    return [
        f"`{name}`" + (" (teacher)" if run.kind == "teacher" else ""),
        f"`{run.preset}`: {network}" if run.preset else network,
        _shown(run.recipe) + (f", started from {_named(run.init, runs)}" if run.init else ""),
        taught_by(run, runs),
        _shown(run.seed),
        _shown(run.epochs) if run.finished else f"{run.epochs_done} of {_shown(run.epochs)}",
        _shown(run.data),
        images,
        _shown(run.device),
        NOTHING if run.images_per_second is None else f"{run.images_per_second:.0f}",
        " / ".join(f"{100 * exit.accuracy:.2f}" for exit in run.exits) or NOTHING,
        " / ".join(gflops(exit.gflops) for exit in run.exits) or NOTHING,
        _shown(run.git_commit),
        f"`{run.command}`" if run.command else NOTHING,
    ]


def taught_by(run: Run, runs: list[Run]) -> str:
    """Whom a run learned from, by the name of the run with the very same weights where it is among `runs`."""
    if run.teacher is None:
        return "none"
    return _named(run.teacher, runs)


def _named(weights: TeacherName, runs: list[Run]) -> str:
    same = [name for name, other in zip(labels(runs), runs, strict=True) if other.sha256 == weights.sha256]
    if same:
        return f"`{same[0]}`"
    return f"`{weights.name or weights.sha256[:12]}` (not among these)"


def gflops(cost: float | None) -> str:
    """Multiply-adds / 1e9, with four places of what is small and two of what is large."""
    if cost is None:
        return NOTHING
    return f"{cost:.4f}" if cost < 1 else f"{cost:.2f}"


def _shown(value: object) -> str:
    return NOTHING if value is None else str(value)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _safe(cell: str) -> str:
    # A bar or a line break in a command would end the cell.
    return " ".join(cell.split()).replace("|", "\\|")
