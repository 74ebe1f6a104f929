"""Plans as steps. Every command is one of the product, so that anyone can rerun it."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.gpu_campaign.plans import FOLLOWS, Follow, Plan

MSMLP = (sys.executable, "-c", "from msmlp.main import main; main()")

STARTING_SECONDS: dict[str, float] = {
    "train": 90,
    "calibrate": 40,
    "report": 20,
    "evaluate": 40,
    "bench": 120,
    "pair": 60,
}
"""Below this a step is not begun: a training's first epoch (it compiles), the whole of anything else. First guesses,
not measured on a GPU; what a step is seen to need takes their place (`records.py`)."""
TINY_SECONDS = 1.0


@dataclass(frozen=True)
class Command:
    """One process. A training leaves its `folder`, takes --resume and stops cleanly on SIGINT; what another command
    prints is kept as `output`. `needs` names the commands that come first: trainings whose folders it reads, and
    their calibration."""

    name: str
    argv: tuple[str, ...]
    folder: str | None = None
    output: str | None = None
    needs: tuple[str, ...] = ()
    note: str = ""

    @property
    def typed(self) -> str:
        """As one would type it."""
        ours = self.argv[: len(MSMLP)] == MSMLP
        return shlex.join(("msmlp", *self.argv[len(MSMLP) :]) if ours else self.argv)


@dataclass(frozen=True)
class Step:
    """Commands that are started together and stopped together; mostly one."""

    name: str
    commands: tuple[Command, ...]
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where and at what size the steps run."""

    data: dict[str, Path]
    work: Path
    device: str
    tiny: bool = False

    def seconds(self, kind: str) -> float:
        """What a step of that kind needs at least, before anything is known of it."""
        return TINY_SECONDS if self.tiny else STARTING_SECONDS[kind]


def steps(plans: tuple[Plan, ...], place: Place) -> list[Step]:
    """The steps of all plans whose data set is at hand, in the order of the plans."""
    made: list[Step] = []
    there = [plan for plan in plans if plan.data in place.data]
    for _, together in groupby(there, key=lambda plan: plan.group or plan.name):
        made += _of(tuple(together), place)
    return made


def _of(plans: tuple[Plan, ...], place: Place) -> Iterator[Step]:
    name = plans[0].group or plans[0].name
    yield Step(f"{name}.train", tuple(_train(plan, place) for plan in plans), place.seconds("train"))
    for kind in FOLLOWS:
        commands = tuple(_after(plan, kind, place) for plan in plans if kind in plan.then)
        if kind == "bench":  # what is timed has the device to itself
            for command in commands:
                yield Step(command.name, (command,), place.seconds(kind))
        elif commands:
            yield Step(f"{name}.{kind}", commands, place.seconds(kind))
    for plan in plans:
        if plan.rival is not None:
            pair = _pair(plan, plan.rival, place)
            yield Step(pair.name, (pair,), place.seconds("pair"))


def _train(plan: Plan, place: Place) -> Command:
    argv = [*MSMLP, "train", "--data", str(place.data[plan.data]), "--preset", plan.preset, "--recipe", plan.recipe]
    argv += ["--out", str(place.work / plan.name), "--device", place.device, "--seed", str(plan.seed), "--resume"]
    if plan.epochs is not None:
        argv += ["--epochs", str(plan.epochs)]
    if plan.teacher is not None:
        argv += ["--teacher", str(place.work / plan.teacher)]
    for change in plan.sets:
        argv += ["--set", change]
    needs = () if plan.teacher is None else (f"{plan.teacher}.train",)
    return Command(f"{plan.name}.train", tuple(argv), folder=plan.name, needs=needs, note=plan.note)


def _after(plan: Plan, kind: Follow, place: Place) -> Command:
    folder, data = str(place.work / plan.name), ("--data", str(place.data[plan.data]), "--device", place.device)
    options: dict[str, tuple[str, ...]] = {
        "report": ("report", folder),
        "calibrate": ("calibrate", "--weights", folder, *data),
        "evaluate": ("evaluate", "--weights", folder, *data, "--split", "test"),
        "bench": ("bench", "engine", "--weights", folder, *data, *_bench_size(place.tiny)),
    }
    return Command(
        f"{plan.name}.{kind}",
        (*MSMLP, *options[kind], "--json"),
        output=f"{plan.name}.{kind}.json",
        needs=(f"{plan.name}.train",),
        note=plan.note,
    )


def _pair(plan: Plan, rival: str, place: Place) -> Command:
    """The cascade `rival` against this plain Mixer, once both have the frontier that the device serves."""
    argv = [*MSMLP, "bench", "pair", "--weights", str(place.work / rival), "--against", str(place.work / plan.name)]
    argv += ["--data", str(place.data[plan.data]), "--device", place.device, "--max-batch", "16", "--json"]
    if place.tiny:  # an untrained cascade need not be as good
        argv += ["--images", "32", "--rounds", "1", "--policy", "accurate"]
    name = f"{plan.name}.pair"
    return Command(name, tuple(argv), output=f"{name}.json", needs=_both(plan.name, rival), note=plan.note)


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{kind}" for name in names for kind in ("train", "calibrate"))


def _bench_size(tiny: bool) -> tuple[str, ...]:
    if tiny:
        return ("--images", "32", "--max-batch", "16", "--rounds", "1", "--load-seconds", "0")
    return ("--images", "4096", "--max-batch", "16,64,256", "--load-seconds", "5")
