"""What in a work folder is worth carrying home, most valuable first."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_campaign.archive import Parcel
from benchmarks.gpu_campaign.schedule import Schedule

CHECKPOINT = "checkpoint.pt"


def parcels(work: Path, schedule: Schedule) -> list[Parcel]:
    """Figures and logs; finished networks; teachers somebody still needs; half-done runs; teachers nobody needs.

    The checkpoint of a finished run is of no use any more and stays.
    """
    small = [path for path in sorted(work.iterdir()) if path.is_file() and path.suffix != ".partial"]
    made = [Parcel("records and logs", tuple(small)), *_folders(work, schedule)]
    return [parcel for parcel in made if parcel.files]


def _folders(work: Path, schedule: Schedule) -> Iterator[Parcel]:
    commands = [command for step in schedule.steps for command in step.commands]
    trainings = [command for command in commands if command.folder]
    taught = {need for command in trainings for need in command.needs}
    finished = [c for c in trainings if schedule.records.done(c.name)]
    wanted = {need for c in commands if not schedule.records.done(c.name) for need in c.needs}
    networks = [c for c in finished if c.name not in taught]
    teachers = [c for c in finished if c.name in taught]
    half_done = [c for c in trainings if not schedule.records.done(c.name)]
    for command in (*networks, *(c for c in teachers if c.name in wanted)):
        yield _folder(work, command.folder, "finished")
    for command in half_done:
        yield _folder(work, command.folder, "half done")
    for command in (c for c in teachers if c.name not in wanted):
        yield _folder(work, command.folder, "finished, needed by nothing that is left")


def _folder(work: Path, folder: str | None, what: str) -> Parcel:
    paths = sorted((work / str(folder)).rglob("*"))
    files = (path for path in paths if path.is_file() and path.suffix != ".partial")
    keep = (path for path in files if what == "half done" or path.name != CHECKPOINT)
    return Parcel(f"{folder} ({what})", tuple(keep))
