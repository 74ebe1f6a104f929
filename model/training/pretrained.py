"""Trained networks that a run builds on: a teacher whose outputs the exits learn, and weights to start from."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msmlp.model.data.dataset import Dataset, Partition
from msmlp.model.errors import OptionError, WeightsError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.batches import normalizer
from msmlp.model.training.convnet import ConvNet, TeacherFile, read_teacher
from msmlp.model.training.losses import TeacherTargets, pooled_map, token_map
from msmlp.model.training.recipes import NetworkConfig
from msmlp.model.weights import Manifest, load_weights
from msmlp.model.weights.manifest import MODEL

SHIPPED = Path(str(files("msmlp"))) / "weights"


@dataclass(frozen=True)
class Pretrained:
    """A trained network: its name and sha256 go into the manifest and the checkpoint.

    `training` is the manifest's record of how it was trained.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    training: dict[str, Any]

    def leak(self, partition: Partition) -> str | None:
        """Why it may have been trained on images that the run holds out; None if it was not.

        Such a network leaks them into the run. With validation images seen, calibration promises too high an accuracy;
        with audit images seen, the audit does not notice.
        """
        validation, audit = partition.digests
        if self._digest("validation") != validation:
            return f"{self.name} was trained with other validation images, so it may have seen images held out here"
        if audit is not None and self._digest("audit") != audit:
            other = "other audit images" if self._digest("audit") else "no audit set"
            return f"{self.name} was trained with {other}, so it may have seen the audit images"
        # What it started from may have seen them.
        inherited: str | None = (self.training.get("init") or {}).get("leak")
        return inherited

    def _digest(self, name: str) -> str | None:
        return (self.training.get(name) or {}).get("digest")


@dataclass(frozen=True)
class InitialWeights(Pretrained):
    cascade: CascadeConfig
    preprocess: Preprocess
    state: dict[str, Tensor]

    def leak_into(self, dataset: Dataset, partition: Partition) -> str | None:
        """As `leak`; None too if neither all classes nor the data's name are the same: these were other images."""
        related = self.classes == dataset.classes or self.training.get("data") == dataset.source
        return self.leak(partition) if related else None

    def check(self, network: NetworkConfig) -> None:
        """OptionError if it is another cascade, whatever the classes."""
        if not isinstance(network, CascadeConfig):
            raise OptionError("init", "only a cascade can start from trained weights, a teacher cannot")
        ours, theirs = network.model_dump(), self.cascade.model_dump()
        different = sorted(key for key in ours if ours[key] != theirs[key] and key != "classes")
        if different == ["image_size"]:
            size = self.cascade.image_size
            raise OptionError("init", f"{self.name} takes images of {size} pixels, and cannot learn another size")
        if different:
            raise OptionError(
                "init",
                f"{self.name} is another cascade; they differ in {', '.join(different)}. Leave out --preset to train "
                f"the cascade of {self.name}",
            )

    def load_into(self, model: Cascade, classes: tuple[str, ...]) -> None:
        """Copy the weights; exits for other `classes` keep their random heads."""
        heads = {} if self.classes == classes else {k: v for k, v in model.state_dict().items() if ".head." in k}
        model.load_state_dict(self.state | heads)


@dataclass(frozen=True)
class Teacher(Pretrained):
    """`targets` maps images [N, 3, H, W] in [0, 1], after augmentation, to the teacher's targets; their features have
    `width` channels."""

    image_size: int
    width: int
    targets: Callable[[Tensor], TeacherTargets]

    def check(self, classes: tuple[str, ...], image_size: int, partition: Partition) -> None:
        """OptionError if it does not fit the data, or may have seen what the run holds out."""
        if self.image_size != image_size:
            raise OptionError(
                "teacher", f"{self.name} takes images of {self.image_size} pixels, the cascade {image_size}"
            )
        if self.classes != classes:
            odd = ", ".join(sorted(set(self.classes) ^ set(classes))[:5]) or "the same in another order"
            raise OptionError("teacher", f"{self.name} has other classes than the data: {odd}")
        if leak := self.leak(partition):
            raise OptionError("teacher", f"{leak}; train both on the same data with the same --seed")


def load_initial_weights(folder: Path) -> InitialWeights:
    """Weights from a folder, or those shipped under a name such as `cifar10-s`.

    Raises:
        WeightsError: the folder is damaged, or not a weights folder.
    """
    shipped = SHIPPED / folder.name
    if len(folder.parts) == 1 and not folder.exists():
        if not shipped.is_dir():
            names = ", ".join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))
            raise WeightsError(f"there is no weights folder {folder}; the shipped ones are {names}")
        folder = shipped
    manifest, sha256, state = _read_weights(folder)
    return InitialWeights(
        manifest.name, sha256, manifest.classes, manifest.training, manifest.mixers, manifest.preprocess, state
    )


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
        network = Cascade(description.mixers).to(device).eval()
        network.load_state_dict(state)
        width = description.mixers.stages[-1].width
    normalize = normalizer(description.preprocess, device)

    @torch.no_grad()
    def targets(images: Tensor) -> TeacherTargets:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            features, logits = network.outputs(normalize(images))
        last = features[-1] if isinstance(network, ConvNet) else token_map(features[-1])
        return TeacherTargets(logits[-1].float(), pooled_map(last.float()))

    image_size, training = network.config.image_size, description.training
    return Teacher(description.name, sha256, description.classes, training, image_size, width, targets)


def _read_weights(folder: Path) -> tuple[Manifest, str, dict[str, Tensor]]:
    weights = load_weights(folder)
    return weights.manifest, weights.sha256, {name: torch.from_numpy(array) for name, array in weights.state.items()}
