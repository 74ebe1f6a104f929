"""The runs below some folders, and what looked like one and is none."""

import os
from collections.abc import Iterator
from pathlib import Path

from msmlp.model.errors import DataError, WeightsError
from msmlp.model.report.read import SIGNS, read_run
from msmlp.model.report.run import Found, Run


def find_runs(folders: list[Path]) -> Found:
    """Every run in or below `folders`, each once.

    Raises:
        DataError: a folder that is not there, or no run anywhere.
    """
    runs: list[Run] = []
    skipped: list[str] = []
    seen = set()
    for root in folders:
        if not root.is_dir():
            raise DataError(f"there is no folder {root}")
        for folder in _candidates(root):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                runs.append(read_run(folder, _place(folder, root)))
            except WeightsError as error:
                skipped.append(str(error))
    if not runs:
        where = ", ".join(str(folder) for folder in folders)
        reasons = f": {'; '.join(skipped)}" if skipped else ""
        raise DataError(f"there is no run that can be read in {where}{reasons}")
    return Found(runs=with_data(runs), skipped=skipped)


def _candidates(root: Path) -> Iterator[Path]:
    for place, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if set(SIGNS) & set(files):
            yield Path(place)


def _place(folder: Path, root: Path) -> str:
    inside = folder.relative_to(root)
    return str(inside) if inside.parts else folder.resolve().name


def with_data(runs: list[Run]) -> list[Run]:
    """The same, where an unfinished run takes the data set of a finished one with the same validation images."""
    known = {run.validation_digest: run for run in runs if run.validation_digest and run.data}

    def filled(run: Run) -> Run:
        other = known.get(run.validation_digest or "")
        if run.data or other is None:
            return run
        return run.model_copy(update={"data": other.data, "validation_images": other.validation_images})

    return [filled(run) for run in runs]
