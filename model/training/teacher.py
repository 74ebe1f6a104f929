"""Distillation: every exit of a cascade also learns the probabilities of a trained network, the teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msmlp.model.cascade import Cascade
from msmlp.model.errors import OptionError
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.augment import normalizer
from msmlp.model.training.imitation import pooled_map, token_map
from msmlp.model.training.losses import Lesson
from msmlp.model.training.teacher_folder import read_teacher
from msmlp.model.weights import load_weights
from msmlp.model.weights.manifest import MODEL


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
