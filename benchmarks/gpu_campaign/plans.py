"""What the campaign trains, as plain data, most valuable first. To add a network is to add a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from msmlp.model.nn.config import PRESETS

Follow = Literal["calibrate", "report", "evaluate", "bench"]
FOLLOWS: tuple[Follow, ...] = ("calibrate", "report", "evaluate", "bench")
"""What comes after a training, in this order: the frontier as the device serves it; curve and validation figures as
a file, which travels home where weights are too large to; the test images; speed."""
EPOCHS_OF_AN_ABLATION = 60
VIEWS = "views=32"
"""Augmented and shown to the teacher once, not in each of 300 epochs: so that the device is busy with the network."""

SEARCHED: dict[str, tuple[str, ...]] = {
    "wide": ("stages.0.width=128", "stages.2.width=256", "stages.2.channel_hidden=768", "stages.2.depth=4"),
    "fine": (
        "stages.2.patch=2",
        "stages.2.width=128",
        "stages.2.token_hidden=128",
        "stages.2.channel_hidden=384",
        "stages.2.depth=3",
    ),
}
"""Other ways to spend what `m` costs: on width (128, 128, 256), and on 256 tokens at the last stage."""


@dataclass(frozen=True)
class Plan:
    """One network on one data set: train it, then what `then` says.

    `name` is also the folder's. `teacher` names the plan whose folder it learns from; that one comes first. Plans that
    stand one after the other with the same `group` train side by side. `rival` names the cascade that is benched
    against this plain Mixer. `note` goes beside every figure.
    """

    name: str
    data: str
    preset: str
    recipe: str
    teacher: str | None = None
    epochs: int | None = None
    sets: tuple[str, ...] = ()
    seed: int = 0
    then: tuple[Follow, ...] = FOLLOWS
    group: str | None = None
    rival: str | None = None
    note: str = ""


def _plain(preset: str) -> str:
    """The change that leaves of a cascade its last stage alone, which is a plain Mixer."""
    return f"stages={json.dumps([PRESETS[preset].stages[-1].model_dump()])}"


def _frontier(data: str, teacher: str) -> Iterator[Plan]:
    """A teacher, the cascades that learn from it, and plain Mixers of their last stages' size and the same recipe."""
    learns_from = f"{data}-teacher"
    yield Plan(learns_from, data, teacher, "teacher", then=("report",))

    def distilled(name: str, preset: str, *sets: str) -> Plan:
        return Plan(f"{data}-{name}", data, preset, "distill", teacher=learns_from, sets=(VIEWS, *sets))

    def plain(preset: str) -> Plan:
        return replace(distilled(f"{preset}-plain", preset, _plain(preset)), rival=f"{data}-{preset}")

    yield distilled("m", "m")
    yield plain("m")
    # A CPU can train the smallest, so the largest comes first.
    for preset in ("l", "s"):
        yield distilled(preset, preset)
    for preset in ("l", "s"):
        yield plain(preset)
    for name, sets in SEARCHED.items():
        yield distilled(f"m-{name}", "m", *sets)
    yield Plan(f"{data}-m-alone", data, "m", "best", then=("report", "evaluate"), note="no teacher")


def _paper(data: str, size: str) -> Iterator[Plan]:
    """The paper's cascade and its plain Mixer on the full schedule; both at once fill the device better than each."""
    for preset in (f"paper-{size}", f"mixer-{size}"):
        yield Plan(f"{data}-{preset}", data, preset, "paper", group=f"{data}-paper-{size}")


def _ablations(data: str) -> Iterator[Plan]:
    """Tables 3 to 5: which blocks read upstream features, and whether through a LayerNorm."""
    switches = {
        "none": ("reuse=none",),
        "first": ("reuse=first",),
        "all": ("reuse=all",),
        "no-norm": ("reuse=all", "reuse_norm=false"),
    }
    for name, sets in switches.items():
        yield Plan(
            f"{data}-reuse-{name}",
            data,
            "paper-s",
            "paper",
            epochs=EPOCHS_OF_AN_ABLATION,
            sets=sets,
            then=("report", "evaluate"),
            group=f"{data}-reuse",
            note=f"short schedule: {EPOCHS_OF_AN_ABLATION} epochs, the paper has 300",
        )


PLANS: tuple[Plan, ...] = (
    *_frontier("cifar10", "teacher-resnet18"),
    *_frontier("cifar100", "teacher-resnet18"),
    *_paper("cifar10", "s"),
    *_ablations("cifar10"),
    *_paper("cifar10", "b"),
    *_paper("cifar100", "s"),
)

_QUICKLY = ("augment=none", "mixup=0", "cutmix=0", "warmup_epochs=0")
_TINY = Plan("", "cifar10", "tiny", "best", epochs=2, sets=_QUICKLY, then=())

TINY_PLANS: tuple[Plan, ...] = (
    Plan("cifar10-teacher", "cifar10", "teacher-tiny", "teacher", epochs=1, then=()),
    replace(_TINY, name="cifar10-tiny", recipe="distill", teacher="cifar10-teacher", then=FOLLOWS),
    replace(
        _TINY,
        name="cifar10-plain",
        sets=(*_QUICKLY, _plain("tiny")),
        then=("calibrate",),
        group="cifar10-pair",
        rival="cifar10-tiny",
    ),
    replace(_TINY, name="cifar10-reuse-none", sets=(*_QUICKLY, "reuse=none"), group="cifar10-pair", note="no reuse"),
)
"""The same walk in seconds: a teacher, a cascade that learns from it and all that follows, two trained side by side."""
