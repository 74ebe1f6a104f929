"""What training a teacher leaves: `teacher.json` + `model.safetensors`. No weights folder: nothing serves it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from msmlp.model.errors import OptionError, WeightsError, one_line
from msmlp.model.nn.cascade import Cascade
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.batches import normalizer
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.losses import Lesson, pooled_map, token_map
from msmlp.model.training.recipes import TeacherConfig, teacher_gflops
from msmlp.model.weights import load_weights
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
        raise WeightsError(one_line(error, str(path))) from None
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


# FROM model/training/teacher.py:
# Distillation: every exit of a cascade also learns the probabilities of a trained network, the teacher.


@dataclass(frozen=True)
class Teacher:
    """A trained network, with the name and the sha256 that the manifest and a checkpoint record.

    `teach` maps images [N, 3, H, W] in [0, 1], as the augmentation leaves them, to a lesson; `width` is the number of
    channels of its features.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    image_size: int
    validation_digest: str | None
    width: int
    teach: Callable[[Tensor], Lesson]

    def check(self, classes: tuple[str, ...], image_size: int, validation_digest: str) -> None:
        """Raise OptionError when it cannot teach a cascade of these classes, this image size and these held-out images.

        A teacher that was trained on the validation images would pass on what it knows of them, and the calibration
        would expect too much.
        """
        if self.image_size != image_size:
            raise OptionError("teacher", f"{self.name} sees {self.image_size} pixels, the cascade {image_size}")
        if self.classes != classes:
            odd = sorted(set(self.classes) ^ set(classes))
            raise OptionError(
                "teacher",
                f"{self.name} knows other classes than the data: {', '.join(odd[:5]) or 'the same in another order'}",
            )
        if self.validation_digest != validation_digest:
            raise OptionError(
                "teacher",
                f"{self.name} was trained with other validation images, so it may have seen ours; "
                "train both on the same data with the same --seed",
            )


def load_teacher(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Teacher:
    """A teacher's folder, or a weights folder, whose last exit teaches; it works in `dtype`.

    Raises:
        WeightsError: damaged, or neither.
    """
    found = read_teacher(folder)
    if found is not None:
        described, network = found
        size, sha256 = described.network.image_size, described.files[MODEL]
        # Convolutions are faster with the channels last.
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        lesson = _lesson(lambda images: network.outputs(images), described.preprocess, device, dtype)
        width = described.network.widths[-1]
        return Teacher(described.name, sha256, described.classes, size, _digest(described.training), width, lesson)
    weights = load_weights(folder)
    manifest = weights.manifest
    cascade = Cascade(manifest.cascade).to(device).eval()
    cascade.load_state_dict({name: torch.from_numpy(array) for name, array in weights.state.items()})

    def outputs(images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features, logits = cascade.outputs(images)
        return [token_map(features[-1])], logits

    lesson, width = _lesson(outputs, manifest.preprocess, device, dtype), manifest.cascade.stages[-1].width
    size, digest = manifest.cascade.image_size, _digest(manifest.training)
    return Teacher(manifest.name, weights.sha256, manifest.classes, size, digest, width, lesson)


def _digest(training: dict[str, Any]) -> str | None:
    digest: str | None = training.get("validation", {}).get("digest")
    return digest


def _lesson(
    outputs: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    preprocess: Preprocess,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[Tensor], Lesson]:
    normalize = normalizer(preprocess, device)

    @torch.no_grad()
    def lesson(images: Tensor) -> Lesson:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            features, logits = outputs(normalize(images))
        return Lesson(logits[-1].float(), pooled_map(features[-1].float()))

    return lesson
