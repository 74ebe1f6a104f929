"""A run that has not ended, or was killed: told from its checkpoint, which knows less than a manifest."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from msmlp.model.errors import WeightsError
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.nn.flops import cumulative_gflops
from msmlp.model.report.run import Exit, Row, Run, TeacherName
from msmlp.model.training.trainer import CHECKPOINT


def unfinished_run(folder: Path, place: str, curve: list[Row]) -> Run:
    """What the checkpoint and the curve say; WeightsError for a checkpoint that cannot be read."""
    setup, done = _checkpoint(folder / CHECKPOINT)
    network, costs = _network(folder, setup["cascade"])
    speeds = sorted(row.images_per_second for row in curve)
    last = curve[-1].val_accuracy if curve else []
    teacher = setup.get("teacher")
    return Run(
        name=folder.resolve().name,
        folder=place,
        kind="teacher" if costs is None else "cascade",
        finished=False,
        network=network,
        teacher=TeacherName(sha256=teacher) if teacher else None,
        init=TeacherName(sha256=setup["init"]) if setup.get("init") else None,
        seed=setup.get("seed"),
        epochs=json.loads(setup["recipe"])["epochs"],
        epochs_done=done,
        images=setup.get("number of training images"),
        validation_digest=setup.get("validation digest"),
        images_per_second=speeds[len(speeds) // 2] if speeds else None,
        exits=[Exit(exit=k + 1, accuracy=last[k], gflops=costs[k] if costs else None) for k in range(len(last))],
        curve=curve,
    )


def _checkpoint(path: Path) -> tuple[dict[str, Any], int]:
    """What the run was begun with, and the epochs done; the tensors stay on the disk."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        setup, done = dict(state["setup"]), int(state["epochs_done"])
        json.loads(setup["recipe"])["epochs"]
        json.loads(setup["cascade"])
    except Exception as error:  # a damaged zip raises nearly anything
        raise WeightsError(f"{path} cannot be read ({type(error).__name__})") from None
    return setup, done


def _network(folder: Path, described: str) -> tuple[dict[str, Any], list[float] | None]:
    """The configuration in a checkpoint, and what each exit costs, None for a teacher."""
    network: dict[str, Any] = json.loads(described)
    if "stages" not in network:
        return network, None
    try:
        cascade = CascadeConfig.model_validate(network)
    except ValidationError:
        raise WeightsError(f"{folder / CHECKPOINT} is of a cascade that this version does not know") from None
    return network, cumulative_gflops(cascade)
