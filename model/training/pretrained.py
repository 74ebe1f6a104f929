"""Trained networks that a run builds on: a teacher whose outputs the exits learn, and weights to start from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msmlp.model.errors import OptionError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.training.batches import normalizer
from msmlp.model.training.convnet import ConvNet, TeacherFile, read_teacher
from msmlp.model.training.losses import TeacherTargets, pooled_map, token_map
from msmlp.model.weights import Manifest, load_weights
from msmlp.model.weights.manifest import MODEL


@dataclass(frozen=True)
class Pretrained:
    """A trained network: its name and sha256 go into the manifest and the checkpoint."""

    name: str
    sha256: str
    classes: tuple[str, ...]
    validation_digest: str | None

    def check_data(self, option: str, classes: tuple[str, ...], validation_digest: str) -> None:
        """Raise OptionError if it was trained on other classes or held out other validation images.

        A network that was trained on the validation images would leak them into the run, and calibration would then
        promise too high an accuracy.
        """
        if self.classes != classes:
            odd = ", ".join(sorted(set(self.classes) ^ set(classes))[:5]) or "the same in another order"
            raise OptionError(option, f"{self.name} has other classes than the data: {odd}")
        if self.validation_digest != validation_digest:
            raise OptionError(
                option,
                f"{self.name} was trained with other validation images, so it may have seen those of this run; "
                "train both on the same data with the same --seed",
            )


@dataclass(frozen=True)
class InitialWeights(Pretrained):
    cascade: CascadeConfig
    state: dict[str, Tensor]

    def load_into(self, model: Cascade) -> None:
        ours, theirs = model.config.model_dump(), self.cascade.model_dump()
        different = sorted(key for key in ours if ours[key] != theirs[key])
        if different:
            raise OptionError("init", f"{self.name} is another cascade; they differ in {', '.join(different)}")
        model.load_state_dict(self.state)


@dataclass(frozen=True)
class Teacher(Pretrained):
    """`targets` maps images [N, 3, H, W] in [0, 1], after augmentation, to the teacher's targets; their features have
    `width` channels."""

    image_size: int
    width: int
    targets: Callable[[Tensor], TeacherTargets]

    def check(self, classes: tuple[str, ...], image_size: int, validation_digest: str) -> None:
        if self.image_size != image_size:
            raise OptionError(
                "teacher", f"{self.name} takes images of {self.image_size} pixels, the cascade {image_size}"
            )
        self.check_data("teacher", classes, validation_digest)


def load_initial_weights(folder: Path) -> InitialWeights:
    """Raises WeightsError if `folder` is damaged or not a weights folder."""
    manifest, sha256, state = _read_weights(folder)
    digest = manifest.training.get("validation", {}).get("digest")
    return InitialWeights(manifest.name, sha256, manifest.classes, digest, manifest.cascade, state)


def load_teacher(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Teacher:
    """A teacher's folder, or a weights folder, of which the last exit teaches; it computes in `dtype`."""
    network: ConvNet | Cascade
    description: TeacherFile | Manifest
    if (found := read_teacher(folder)) is not None:
        description, network = found
        # Convolutions are faster with the channels last.
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        sha256, width = description.files[MODEL], network.config.widths[-1]
    else:
        description, sha256, state = _read_weights(folder)
        network = Cascade(description.cascade).to(device).eval()
        network.load_state_dict(state)
        width = description.cascade.stages[-1].width
    digest = description.training.get("validation", {}).get("digest")
    normalize = normalizer(description.preprocess, device)

    @torch.no_grad()
    def targets(images: Tensor) -> TeacherTargets:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            features, logits = network.outputs(normalize(images))
        last = features[-1] if isinstance(network, ConvNet) else token_map(features[-1])
        return TeacherTargets(logits[-1].float(), pooled_map(last.float()))

    return Teacher(description.name, sha256, description.classes, digest, network.config.image_size, width, targets)


def _read_weights(folder: Path) -> tuple[Manifest, str, dict[str, Tensor]]:
    weights = load_weights(folder)
    return weights.manifest, weights.sha256, {name: torch.from_numpy(array) for name, array in weights.state.items()}
