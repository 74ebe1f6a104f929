"""What training a teacher leaves: `teacher.json` + `model.safetensors`. No weights folder: nothing serves it."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save

from msmlp.model.errors import WeightsError
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.teachers import TeacherConfig, teacher_gflops
from msmlp.model.weights.files import read_checked, read_json, write_atomically
from msmlp.model.weights.manifest import MODEL
from msmlp.model.weights.manifest import TEACHER as DESCRIPTION


class TeacherFile(BaseModel):
    """teacher.json: the fields of a manifest, with a network where the cascade stands there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    name: str = Field(min_length=1)
    network: TeacherConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    files: dict[str, str]
    training: dict[str, Any]
    results: list[dict[str, Any]]
    gflops: float = Field(description="multiply-adds / 1e9 of the convolutions and the head")


def write_teacher(
    folder: Path,
    *,
    config: TeacherConfig,
    state: dict[str, torch.Tensor],
    classes: tuple[str, ...],
    preprocess: Preprocess,
    training: dict[str, Any],
    results: list[dict[str, Any]],
) -> None:
    """Write both files, each whole or not at all."""
    blob = save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
    write_atomically(folder / MODEL, blob)
    described = TeacherFile(
        format=1,
        name=folder.resolve().name,
        network=config,
        classes=classes,
        preprocess=preprocess,
        files={MODEL: hashlib.sha256(blob).hexdigest()},
        training=training,
        results=results,
        gflops=teacher_gflops(config),
    )
    write_atomically(folder / DESCRIPTION, (described.model_dump_json(indent=1) + "\n").encode())


def read_teacher(folder: Path) -> tuple[TeacherFile, ConvNet] | None:
    """A trained teacher, in evaluation mode on the CPU; None where the folder holds no teacher.json.

    Raises:
        WeightsError: one line that says what is damaged or does not fit.
    """
    path = folder / DESCRIPTION
    read = read_json(path)
    if read is None:
        return None
    try:
        described = TeacherFile.model_validate(read[1])
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if len(described.classes) != described.network.classes:
        raise WeightsError(f"{path}: {len(described.classes)} class names for {described.network.classes} outputs")
    return described, _network(folder / MODEL, described)


def _network(path: Path, described: TeacherFile) -> ConvNet:
    blob = read_checked(path, described.files.get(MODEL))
    network = ConvNet(described.network).eval()
    try:
        network.load_state_dict(load(blob))
    except Exception as error:  # safetensors' own error, a wrong name or a wrong shape
        raise WeightsError(f"{path} does not fit the network of {DESCRIPTION} ({type(error).__name__})") from None
    if not all(np.isfinite(tensor.float().numpy()).all() for tensor in network.state_dict().values()):
        raise WeightsError(f"{path} holds NaN or infinite values")
    return network
