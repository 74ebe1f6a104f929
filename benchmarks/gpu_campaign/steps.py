"""What the campaign does, most valuable first. Every step is a command of the product, so that anyone can rerun it."""

import sys
from dataclasses import dataclass
from pathlib import Path

MSMLP = (sys.executable, "-c", "from msmlp.main import main; main()")


@dataclass(frozen=True)
class Step:
    """One command; `resumable` ones take --resume and stop cleanly on SIGINT. `output` keeps what it prints."""

    name: str
    command: tuple[str, ...]
    resumable: bool = False
    output: str | None = None


@dataclass(frozen=True)
class Plan:
    """One network on one data set: train (which calibrates), evaluate on test, bench."""

    data: str
    preset: str
    recipe: str
    epochs: int | None = None
    sets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Also the name of the weights folder."""
        return f"{self.data}-{self.preset}"


PLANS = (
    Plan("cifar10", "m", "best"),
    Plan("cifar100", "m", "best"),
    Plan("cifar10", "paper-s", "paper"),
    Plan("cifar10", "mixer-s", "paper"),
)
TINY_PLANS = (
    Plan("cifar10", "tiny", "best", epochs=2, sets=("augment=none", "mixup=0", "cutmix=0", "warmup_epochs=0")),
)


def steps(plans: tuple[Plan, ...], data: dict[str, Path], work: Path, device: str, images: int) -> list[Step]:
    """The steps of all plans whose data set is at hand; `images` is how many the bench uses."""
    return [step for plan in plans if plan.data in data for step in _of(plan, data[plan.data], work, device, images)]


def _of(plan: Plan, data: Path, work: Path, device: str, images: int) -> list[Step]:
    weights = str(work / plan.name)
    train = [*MSMLP, "train", "--data", str(data), "--preset", plan.preset, "--recipe", plan.recipe]
    train += ["--out", weights, "--device", device, "--resume"]
    if plan.epochs is not None:
        train += ["--epochs", str(plan.epochs)]
    for change in plan.sets:
        train += ["--set", change]
    evaluate = [*MSMLP, "evaluate", "--weights", weights, "--data", str(data), "--split", "test", "--json"]
    bench = [*MSMLP, "bench", "engine", "--weights", weights, "--data", str(data), "--json"]
    bench += ["--load-seconds", str(min(5.0, images / 200))]
    return [
        Step(f"{plan.name}.train", tuple(train), resumable=True),
        Step(f"{plan.name}.evaluate", (*evaluate, "--device", device), output=f"{plan.name}.evaluate.json"),
        Step(
            f"{plan.name}.bench",
            (*bench, "--device", device, "--images", str(images), "--max-batch", "16,64,256"),
            output=f"{plan.name}.bench.json",
        ),
    ]
