"""Which step comes next. Knows no clock, no process and no device.

Rules
1. The first step, in the order of the list, that can get anywhere in the seconds that are left.
2. What is done is not done again, except a training whose folder was left behind on another machine while something
   that is not done needs it.
3. A command waits for the trainings it needs. What failed is not tried again in the same call, and nobody else suffers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu_campaign.records import Records
from benchmarks.gpu_campaign.steps import Command, Step

FINISHED = ("manifest.json", "teacher.json")


@dataclass
class Schedule:
    """The steps of a campaign and how far they are; `failed` are the commands that failed in this call."""

    steps: list[Step]
    records: Records
    work: Path
    failed: set[str] = field(default_factory=set)

    def next(self, left: float) -> Step | None:
        """The step to start with `left` seconds to go, with the commands of it that can run; None for none."""
        for step in self.steps:
            commands = tuple(command for command in self.open(step) if not self._waits_for(command))
            if commands and max(self.records.seconds_needed(step, command) for command in commands) <= left:
                return Step(step.name, commands, step.seconds)
        return None

    def open(self, step: Step) -> list[Command]:
        """The commands of a step that are still to be run, some time."""
        return [command for command in step.commands if not self.closed(command)]

    def closed(self, command: Command) -> bool:
        """Whether nothing is to be done for a command: done and, for a training, there if anyone needs it."""
        if not self.records.done(command.name):
            return False
        return command.folder is None or self.there(command.folder) or command.name not in self._needed()

    def there(self, folder: str) -> bool:
        """Whether a training's result is on this machine."""
        return any((self.work / folder / name).exists() for name in FINISHED)

    def stuck(self, command: Command) -> bool:
        """Whether another call like this one would not bring an open command any further."""
        lost = command.name in self.failed or self.records.given_up(command.name)
        return lost or any(not self.closed(need) and self.stuck(need) for need in self._needs(command))

    def why_not(self, step: Step, command: Command) -> str:
        """One line on an open command, for people."""
        if command.name in self.failed or self.records.given_up(command.name):
            return f"failed, see {command.name}.log"
        waits = [need.name for need in self._needs(command) if not self.closed(need)]
        if waits:
            return f"waits for {', '.join(waits)}"
        return f"wants {self.records.seconds_needed(step, command):.0f} s"

    def _waits_for(self, command: Command) -> bool:
        if command.name in self.failed or self.records.given_up(command.name):
            return True
        return any(not self.closed(need) for need in self._needs(command))

    def _needs(self, command: Command) -> Iterator[Command]:
        return (other for step in self.steps for other in step.commands if other.name in command.needs)

    def _needed(self) -> set[str]:
        """The trainings whose folders are read by a command that is not done, or is itself done again."""
        needed: set[str] = set()
        # Whoever needs stands behind what is needed, so one pass from the end sees all.
        for step in reversed(self.steps):
            for command in step.commands:
                again = command.name in needed and command.folder is not None and not self.there(command.folder)
                if again or not self.records.done(command.name):
                    needed.update(command.needs)
        return needed
