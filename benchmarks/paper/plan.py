"""The trainings behind the page, as data: which networks, in which order, and the command of each."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from msmlp.model.errors import OptionError
from msmlp.model.nn.config import CascadeConfig, cumulative_gflops, override
from msmlp.model.training.recipes import TrainOptions, configure

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
CLASSES = {"cifar10": 10, "cifar100": 100}
PATCHES = (16, 8, 4)

ABLATIONS: dict[str, dict[str, Any]] = {"none": {"reuse": "none"}, "first": {"reuse": "first"}}
ABLATIONS["no-norm"] = {"reuse_norm": False}
MIXERS = {f"mixer-{patch}": patch for patch in PATCHES}

LARGER = ("all", "mixer-4")
"""What Table 2 needs of the deeper networks."""
COMPARED = (*LARGER, *ABLATIONS)
"""Trained with every seed, the main comparison first; `all` is the paper's cascade."""
TABLE_1_ONLY = ("mixer-8", "mixer-16")


@dataclass(frozen=True)
class Scale:
    """How large the networks are and how long they train."""

    name: str
    sizes: tuple[str, ...]
    """The networks of all tables first, then those of Table 2 alone."""
    stage: dict[str, int] | None = field(hash=False)
    """Dimensions in place of those of the paper's presets."""
    epochs: int
    dtype: Literal["auto", "float32", "bfloat16"]
    seeds: int
    """On CIFAR-10; CIFAR-100 and the networks of Table 2 alone have one."""


SCALES = {
    # The hidden widths are in the paper's ratio to the width.
    "cpu": Scale(
        "cpu", ("cpu",), {"width": 64, "depth": 4, "token_hidden": 32, "channel_hidden": 256}, 15, "bfloat16", 3
    ),
    "paper": Scale("paper", ("s", "b"), None, 300, "auto", 1),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    scale: Scale
    data: str
    size: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.size}-{self.network}-{self.seed}"

    def options(self, data: Path, out: Path, device: str = "auto", threads: int | None = None) -> TrainOptions:
        """Of a training that goes on where an earlier one stopped."""
        scale, patches = self.scale, (MIXERS[self.network],) if self.network in MIXERS else PATCHES
        changes: dict[str, Any] = {}
        if scale.stage is not None:
            changes["stages"] = [{"patch": patch, **scale.stage} for patch in patches]
        elif self.network in TABLE_1_ONLY:
            changes["stages.0.patch"] = patches[0]
        return TrainOptions(
            data,
            f"{'mixer' if self.network in MIXERS else 'paper'}-{'b' if self.size == 'b' else 's'}",
            out,
            recipe="paper",
            epochs=scale.epochs,
            seed=self.seed,
            device=device,
            dtype=scale.dtype,
            threads=threads,
            resume=True,
            changes={**changes, **ABLATIONS.get(self.network, {})},
        )

    def gflops(self, *, folded: bool = False) -> list[float]:
        """Cumulative, of every exit; in the paper's form, or `folded` as it is served."""
        network, _ = configure(self.options(Path(), Path()))
        assert isinstance(network, CascadeConfig)
        return cumulative_gflops(override(network, {"classes": CLASSES[self.data]}), folded=folded)


def words(options: TrainOptions) -> list[str]:
    """The `msmlp train` command of options that `Run.options` makes."""
    names = ("data", "preset", "out", "recipe", "epochs", "seed", "device", "dtype", "threads")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in options.changes.items()
    }
    return [
        *("msmlp", "train"),
        *(word for name, value in given.items() for word in (f"--{name}", str(value))),
        *(word for key, text in texts.items() for word in ("--set", f"{key}={text}")),
        "--resume",
    ]


def command(options: TrainOptions) -> str:
    return shlex.join(words(options))


def plan(scale: Scale) -> list[Run]:
    """All trainings, in an order in which a half of them already answers something."""
    main, *larger = scale.sizes
    keys = [("cifar10", main, network, 0) for network in (*COMPARED, *TABLE_1_ONLY)]
    keys += [("cifar100", main, network, 0) for network in COMPARED]
    keys += [(data, size, network, 0) for size in larger for data in DATA for network in LARGER]
    keys += [("cifar10", main, network, seed) for seed in range(1, scale.seeds) for network in COMPARED]
    return [Run(scale, *key) for key in keys]


def chosen(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """The runs whose names match one of `patterns`, all without any; OptionError for one that matches nothing."""
    for pattern in patterns:
        if not any(fnmatchcase(run.name, pattern) for run in runs):
            known = ", ".join(run.name for run in runs)
            raise OptionError("only", f"{pattern!r} is not the name of a run; expected one of {known}")
    return [run for run in runs if not patterns or any(fnmatchcase(run.name, pattern) for pattern in patterns)]
