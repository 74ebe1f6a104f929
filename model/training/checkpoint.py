"""What an interrupted run resumes from: written whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from msmlp.model.errors import DataError
from msmlp.model.training.loop import Learner

FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, learner: Learner, epochs_done: int, setup: dict[str, Any]) -> None:
    """Write the state after `epochs_done` epochs; `setup` must be equal on resuming."""
    state = {
        "epochs_done": epochs_done,
        "setup": setup,
        "model": learner.model.state_dict(),
        "average": learner.average.state_dict() if learner.average is not None else None,
        "optimizers": learner.optimizers.state_dict(),
        "git_commit": learner.commit,
        "imitator": learner.imitator.state_dict() if learner.imitator is not None else None,
    }
    partial = folder / (FILE + ".partial")
    torch.save(state, partial)
    partial.replace(folder / FILE)


def load_checkpoint(folder: Path, learner: Learner, setup: dict[str, Any]) -> int:
    """Bring `learner` to where the run stopped → epochs done, 0 without a checkpoint.

    Raises:
        DataError: the checkpoint is of another run (the differing settings are named) or cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=learner.device, weights_only=True)
        theirs = state["setup"]
    except Exception as error:  # a damaged zip raises nearly anything
        raise DataError(f"{path} cannot be read ({type(error).__name__}); start afresh without --resume") from None
    different = [key for key in {**setup, **theirs} if theirs.get(key) != setup.get(key)]
    if different:
        raise DataError(f"{path} is of a run with another {', '.join(different)}; resume with the same options")
    learner.model.load_state_dict(state["model"])
    if learner.average is not None:
        learner.average.load_state_dict(state["average"])
    if learner.imitator is not None:
        learner.imitator.load_state_dict(state["imitator"])
    learner.optimizers.load_state_dict(state["optimizers"])
    learner.commit = state.get("git_commit", learner.commit)
    return int(state["epochs_done"])
