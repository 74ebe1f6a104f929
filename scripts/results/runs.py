"""Every run worth a row, and cascades beside plain Mixers of the same recipe."""

from msmlp.model.report.run import Point, Run
from msmlp.model.report.tables import labels, runs_table
from scripts.results.text import percent, table

HEAD = """## Runs

From docs/results/runs, which `msmlp report RUN --json` writes; `msmlp report FOLDER` shows any other folder of runs
like this. Everything here was chosen on validation images.
"""
AGAINST = """### Cascades against plain Mixers

The cheapest operating point, by validation images, that is expected to be as accurate as the Mixer; both of the same
recipe, number of epochs, teacher (or none) and validation images, from random weights.
"""


def run_lines(runs: list[Run]) -> list[str]:
    """All runs as one table, and the comparison where there is a plain Mixer."""
    lines = HEAD.splitlines()
    if not runs:
        return [*lines, "", "None yet."]
    ordered = sorted(runs, key=lambda run: (run.data or "", run.kind != "teacher", run.name))
    lines += ["", *runs_table(ordered)]
    mixers = [(name, run) for name, run in zip(labels(ordered), ordered, strict=True) if is_plain(run)]
    if not mixers:
        return lines
    rows = [_against(name, mixer, ordered) for name, mixer in mixers]
    head = ["Mixer", "its accuracy", "its GFLOPs", "cascade, point", "expected accuracy", "GFLOPs", "times fewer"]
    return [*lines, "", *AGAINST.splitlines(), "", *table(head, rows)]


def is_plain(run: Run) -> bool:
    """Whether this is a trained Mixer of a single stage."""
    return run.kind == "cascade" and run.finished and len(run.exits) == 1


def cheapest_match(mixer: Run, runs: list[Run]) -> tuple[Run, Point] | None:
    """The cheapest point, of cascades trained as the Mixer was, that is expected to be at least as accurate."""
    matches = [
        (run, point)
        for run in runs
        if len(run.exits) > 1 and run.init is None and _training(run) == _training(mixer)
        for point in run.operating_points
        if point.expected_accuracy >= mixer.exits[0].accuracy
    ]
    return min(matches, key=lambda match: match[1].mean_gflops, default=None)


def _training(run: Run) -> tuple[object, ...]:
    return run.recipe, run.epochs, run.teacher and run.teacher.sha256, run.validation_digest


def _against(name: str, mixer: Run, runs: list[Run]) -> list[str]:
    [exit] = mixer.exits
    cost = exit.gflops or 0.0
    mine = [f"`{name}`", percent(exit.accuracy), f"{cost:.4f}"]
    match = cheapest_match(mixer, runs)
    if match is None:
        return [*mine, "none trained alike is as accurate", "", "", ""]
    run, point = match
    where = f"`{dict(zip(map(id, runs), labels(runs), strict=True))[id(run)]}`, `{point.name}`"
    fewer = f"{cost / point.mean_gflops:.2f}"
    return [*mine, where, percent(point.expected_accuracy), f"{point.mean_gflops:.4f}", fewer]
