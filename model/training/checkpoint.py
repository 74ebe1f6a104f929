"""Checkpoints: what a process leaves to the next, however it ends."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msmlp.model.data import Split
from msmlp.model.errors import DataError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.loop import Learner
from msmlp.model.training.recipes import Recipe
from msmlp.model.weights.files import write_atomically

LAST = "checkpoint.pt"
STABLE = "stable.pt"
"""With the schedule wsd: where the decay begins. A longer run goes on from here."""
MOST_NAMED = 5
"""Options that differ, in an error: another preset differs in nearly all."""
LENGTH = ("epochs", "decay_share")
"""What may differ in a run that goes on from the stable part of a wsd schedule."""


@dataclass
class Position:
    """How far a run is: whole `epochs`, and the `losses` of the steps that are done in the next."""

    epochs: int = 0
    losses: list[Tensor] = field(default_factory=list)

    @property
    def begun(self) -> int:
        """Epochs of which at least one step is done."""
        return self.epochs + bool(self.losses)


def setup_of(learner: Learner, validation_digest: str, training: Split) -> dict[str, Any]:
    """What must be the same when a run is resumed, under the names of the options where they have one."""
    teacher, initial = learner.teacher, learner.initial
    return {
        "network": learner.model.config.model_dump(mode="json"),
        "recipe": learner.recipe.model_dump(mode="json"),
        "teacher": teacher.sha256 if teacher is not None else None,
        "init": initial.sha256 if initial is not None else None,
        "freeze": learner.model.frozen_stages if isinstance(learner.model, Cascade) else 0,
        "seed": learner.seed,
        "dtype": str(learner.dtype).removeprefix("torch."),
        "validation images": validation_digest,
        "training images": len(training),
        # In their order, by which an epoch draws them.
        "training data": sha256(training.labels.tobytes() + training.identities.tobytes()).hexdigest(),
    }


def save(path: Path, learner: Learner, position: Position, setup: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`; an OSError leaves the one before."""
    state = {
        "epochs_done": position.epochs,
        "losses": torch.stack(position.losses) if position.losses else torch.empty(0),
        "setup": setup,
        "threads": torch.get_num_threads() if learner.device.type == "cpu" else None,
        "model": learner.model.state_dict(),
        "average": learner.average.state_dict() if learner.average is not None else None,
        "optimizers": learner.optimizers.state_dict(),
        "git_commit": learner.commit,
        "imitator": learner.predictor.state_dict() if learner.predictor is not None else None,
    }
    buffer = io.BytesIO()  # torch says nothing useful of a full disk
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, and where its run was."""

    state: dict[str, Any]
    position: Position
    threads: int | None
    """Of the run so far; None on a GPU."""

    def restore(self, learner: Learner) -> None:
        learner.model.load_state_dict(self.state["model"])
        if learner.average is not None:
            learner.average.load_state_dict(self.state["average"])
        if learner.predictor is not None:
            learner.predictor.load_state_dict(self.state["imitator"])
        learner.optimizers.load_state_dict(self.state["optimizers"])
        learner.commit = self.state["git_commit"]


def load(folder: Path, learner: Learner, setup: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint from which a run with such a setup goes on, None if there is none.

    A wsd run may be longer or shorter than the one that is saved, as long as its decay begins no earlier than what is
    trained: it goes on from the last checkpoint, or from STABLE if the last one lies in the decay.

    Raises:
        DataError: a file cannot be read, or its setup differs.
    """
    if not (folder / LAST).exists():
        return None
    last = _read(folder / LAST, learner.device)
    last.state["setup"].setdefault("training data", setup["training data"])  # 0.2.0 did not note it
    different = list(_differences(last.state["setup"], setup))
    names = {name for name, *_ in different}
    if not different:
        return last
    recipe = learner.recipe
    if recipe.schedule == "wsd" and names <= set(LENGTH):
        begins = Recipe.model_validate(last.state["setup"]["recipe"]).decay_begins
        found = last if last.position.begun <= begins else _read(folder / STABLE, learner.device)
        if found.position.begun <= recipe.decay_begins:
            return found
        raise DataError(
            f"{folder}: {found.position.begun} epochs are trained at the stable rate, but with {recipe.epochs} epochs "
            f"the decay begins after {recipe.decay_begins}; choose more epochs, or a smaller --set decay_share"
        )
    told = ", ".join(f"{name} ({theirs} there, {ours} here)" for name, theirs, ours in different[:MOST_NAMED])
    more = f" and {len(different) - MOST_NAMED} more" if len(different) > MOST_NAMED else ""
    raise DataError(f"{folder / LAST} is from a run with other options: {told}{more}; resume with the same ones")


def _read(path: Path, device: torch.device) -> Checkpoint:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        setup = state["setup"]
        setup.setdefault("freeze", 0)
        setup["recipe"] = Recipe.model_validate(setup["recipe"]).model_dump(mode="json")  # with what was added since
        position = Position(int(state["epochs_done"]), list(state["losses"].unbind()))
        return Checkpoint(state, position, state["threads"])
    except Exception as error:  # a damaged zip raises nearly anything
        raise DataError(f"{path} cannot be read ({type(error).__name__}); start again in another folder") from None


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, their value and ours, of everything that differs in two setups."""
    one, other = dict(_flat(theirs)), dict(_flat(ours))
    for name in {**other, **one}:
        if one.get(name) != other.get(name):
            yield name, _short(one.get(name)), _short(other.get(name))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists, by the names that `--set` has for them."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            inner = "" if key in ("network", "recipe") and not name else f"{name}.{key}".removeprefix(".")
            yield from _flat(part, inner)
    else:
        yield name, value


def _short(value: Any) -> str:
    """As `--set` takes it; a long digest is cut."""
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
