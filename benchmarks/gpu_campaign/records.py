"""What is known of every command, one JSON file each: `<command>.record.json`. There is no other state.

A record holds a row for every time that the command ran, and at its top what a table wants to say. A figure nobody
measured is null.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.gpu_campaign.steps import Command, Step

SUFFIX = ".record.json"
ATTEMPTS = 2
"""A command that failed so often on one commit is not tried again."""

LONGEST = 420
"""Seconds that a command may want to get anywhere: one call of ten minutes has them, with time to start and to stop."""

State = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Where:
    """What a figure depends on beside the command."""

    device: str
    torch: str
    git_commit: str | None


@dataclass(frozen=True)
class Run:
    """One time that a command ran. `first_epoch_seconds` runs from the start of the process, compiling included;
    `busy_share` is the device's while `side_by_side` commands ran on it."""

    state: State
    exit_status: int
    seconds: float
    side_by_side: int
    epochs: int | None = None
    first_epoch_seconds: float | None = None
    images_per_second: float | None = None
    busy_share: float | None = None


class Records:
    """The records in a work folder."""

    def __init__(self, work: Path, where: Where) -> None:
        self.work, self.where = work, where

    def read(self, name: str) -> dict[str, Any] | None:
        """The record of a command; None when it never ran."""
        path = self.work / (name + SUFFIX)
        return dict(json.loads(path.read_text())) if path.exists() else None

    def add(self, command: Command, run: Run) -> None:
        """One more run; the file is written whole or not at all."""
        before = self.read(command.name) or {"runs": []}
        runs = [*before["runs"], {**asdict(run), **asdict(self.where)}]
        record = {
            "step": command.name,
            "command": command.typed,
            "note": command.note,
            "state": run.state,
            "exit_status": run.exit_status,
            "seconds": sum(row["seconds"] for row in runs),
            **{key: _last(runs, key) for key in ("epochs", "images_per_second", "busy_share", "side_by_side")},
            **asdict(self.where),
            "runs": runs,
        }
        path = self.work / (command.name + SUFFIX)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)

    def done(self, name: str) -> bool:
        """Whether the command ended well, here or on another machine."""
        record = self.read(name)
        return record is not None and record["state"] == "done"

    def given_up(self, name: str) -> bool:
        """Whether it failed, or got nowhere in LONGEST seconds, too often on this commit; other code gets a chance."""
        runs = (self.read(name) or {"runs": []})["runs"]
        ours = [row for row in runs if row["git_commit"] == self.where.git_commit]
        return sum(1 for row in ours if row["state"] == "failed" or _got_nowhere(row)) >= ATTEMPTS

    def seconds_needed(self, step: Step, command: Command) -> float:
        """What the command needs to get anywhere: a training its next checkpoint, anything else its end.

        A first guess, until the command has run: a third more than its first epoch took, and half as much again as the
        time in which it got nowhere, but never more than a call can give.
        """
        for row in reversed((self.read(command.name) or {"runs": []})["runs"]):
            if row["first_epoch_seconds"] is not None:
                return 1.3 * float(row["first_epoch_seconds"])
            if row["state"] == "stopped":
                return min(LONGEST, 1.5 * float(row["seconds"]))
        return step.seconds


def speed(rows: list[dict[str, Any]]) -> float | None:
    """Images/s of some epochs in a row: the median, without the first, which compiles, where there are others."""
    speeds = [float(row["images_per_second"]) for row in rows]
    return median(speeds[1:] or speeds) if speeds else None


def _got_nowhere(row: dict[str, Any]) -> bool:
    return bool(row["state"] == "stopped" and row["first_epoch_seconds"] is None and row["seconds"] >= LONGEST)


def _last(runs: list[dict[str, Any]], key: str) -> Any:
    return next((row[key] for row in reversed(runs) if row[key] is not None), None)
