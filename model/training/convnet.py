"""The convolutional teacher: its network, its cost, and its folder of `teacher.json` and `model.safetensors`.

The folder is not a weights folder: a teacher trains cascades and is never served.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.errors import WeightsError
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.recipes import TeacherConfig
from msmlp.model.weights.files import read_checked, read_json, validated, write_atomically
from msmlp.model.weights.manifest import MODEL, TEACHER

VGG_SCALE = 0.125
"""Factor on a `vgg`'s logits: maxima are large, and large initial logits make large steps diverge."""


class ConvNet(nn.Module):
    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config
        residual = config.kind == "resnet"
        blocks: list[nn.Module] = []
        channels = Whitening.OUTPUTS if config.whiten else config.stem
        for group, width in enumerate(config.widths):
            for number in range(config.blocks):
                halves = number == 0 and (group > 0 or not residual)
                blocks.append((ResidualBlock if residual else VggBlock)(channels, width, halves=halves))
                channels = width
        self.stem = _stem(config)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) if residual else nn.Identity()
        self.head = nn.Linear(channels, config.classes)

    def outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Normalised images [N, 3, H, W] → last feature map [N, C, h, w] and logits [N, classes], in lists of one as a
        cascade of one stage would give them.

        In evaluation mode the logits are the mean of each image's and its mirror image's: better than either, at twice
        the cost, and the learner alone pays for a teacher.
        """
        features, logits = self._once(images)
        if not self.training:
            logits = (logits + self._once(images.flip(3))[1]) / 2
        return [features], [logits]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.outputs(images)[1]

    def _once(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.last(self.blocks(self.stem(images)))
        # As in the papers: a resnet averages over the map, a vgg takes the maximum.
        if self.config.kind == "resnet":
            return features, self.head(features.mean((2, 3)))
        # Not amax: its gradient looks for the maximum's value again, and torch.compile, which computes the map again
        # without rounding it to bfloat16, finds it nowhere and divides by 0.
        return features, VGG_SCALE * cast(Tensor, self.head(features.flatten(2).max(2).values))


def _stem(config: TeacherConfig) -> nn.Module:
    if config.whiten:
        return Whitening()
    return _convolution(3, config.stem) if config.kind == "resnet" else VggBlock(3, config.stem, halves=False)


class Whitening(nn.Module):
    """Patches of 2 x 2 pixels → their components along the principal axes of the training images' patches, each divided
    by its spread, and the same negated → GELU. [N, 3, H, W] → [N, OUTPUTS, H - 1, W - 1].

    It is not trained: the layers behind it see decorrelated inputs from the first step (Jordan, "94% on CIFAR-10 in
    3.29 seconds on a single GPU", 2024).
    """

    OUTPUTS = 24
    FLOOR = 5e-4
    """Added to the variances: it keeps noise along the smallest axes small."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(self.OUTPUTS, 3, 2, 2))

    def fit(self, images: Tensor) -> None:
        """Learn the axes from normalised images [N, 3, H, W]."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        patches = patches - patches.mean(0)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        scaled = (axes / (variances + self.FLOOR).sqrt()).T.reshape(12, 3, 2, 2)
        self.weight.copy_(torch.cat([scaled, -scaled]))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.conv2d(x, self.weight))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class VggBlock(nn.Module):
    """Convolution → (pooling) → norm → GELU. Pooling before the norm is four times cheaper and no worse."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.halves = _convolution(inputs, outputs), nn.BatchNorm2d(outputs), halves
        nn.init.dirac_(self.convolution.weight[: min(inputs, outputs)].data)  # it begins by passing its input on
        self.norm.weight.requires_grad_(False)  # as in the speed runs: a scale would drift at their large rates

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H or H / 2, ...]."""
        x = self.convolution(x)
        return F.gelu(self.norm(F.max_pool2d(x, 2) if self.halves else x))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        stride = 2 if halves else 1
        self.norm1, self.convolution1 = nn.BatchNorm2d(inputs), _convolution(inputs, outputs, stride=stride)
        self.norm2, self.convolution2 = nn.BatchNorm2d(outputs), _convolution(outputs, outputs)
        self.same = inputs == outputs and not halves
        self.project = nn.Identity() if self.same else _convolution(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.relu(self.norm1(x))
        skip = x if self.same else self.project(normed)
        out: Tensor = skip + self.convolution2(F.relu(self.norm2(self.convolution1(normed))))
        return out


def teacher_gflops(config: TeacherConfig) -> float:
    """Multiply-adds / 1e9 of the convolutions and the head, per image that is seen once."""
    size, channels, total = config.image_size, config.stem, 27 * config.stem * config.image_size**2
    if config.whiten:
        size, channels = size - 1, Whitening.OUTPUTS
        total = 12 * channels * size**2
    for group, width in enumerate(config.widths):
        for block in range(config.blocks):
            if config.kind == "vgg":
                total += 9 * channels * width * size**2  # a group's first convolution runs before its pooling
                size //= 2 if block == 0 else 1
            else:
                size //= 2 if block == 0 and group else 1
                total += 9 * (channels + width) * width * size**2
                total += channels * width * size**2 * (channels != width)
            channels = width
    return (total + channels * config.classes) / 1e9


class TeacherFile(BaseModel):
    """teacher.json: a manifest with `network` in place of `cascade`."""

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


def write_teacher(folder: Path, *, config: TeacherConfig, state: dict[str, torch.Tensor], **fields: Any) -> None:
    """Write both files, each atomically; `fields` are `classes`, `preprocess`, `training` and `results`.

    Matrices and kernels are stored in half precision, as its answers are for a student.
    """
    blob = save({name: (each.half() if each.dim() > 1 else each).cpu().contiguous() for name, each in state.items()})
    write_atomically(folder / MODEL, blob)
    description = TeacherFile(
        format=1,
        name=folder.resolve().name,
        network=config,
        files={MODEL: hashlib.sha256(blob).hexdigest()},
        gflops=teacher_gflops(config),
        **fields,
    )
    write_atomically(folder / TEACHER, (description.model_dump_json(indent=1) + "\n").encode())


def read_teacher(folder: Path) -> tuple[TeacherFile, ConvNet] | None:
    """A trained teacher, in evaluation mode on the CPU; None if the folder has no teacher.json; WeightsError if it is
    damaged or inconsistent."""
    path = folder / TEACHER
    found = read_json(path)
    if found is None:
        return None
    description = validated(TeacherFile, found[1], path)
    if len(description.classes) != description.network.classes:
        raise WeightsError(f"{path}: {len(description.classes)} class names for {description.network.classes} outputs")
    blob = read_checked(folder / MODEL, description.files.get(MODEL))
    network = ConvNet(description.network).eval()
    try:
        network.load_state_dict(load(blob))
    except Exception as error:  # safetensors' own error, a wrong name or a wrong shape
        raise WeightsError(f"{folder / MODEL} does not fit the network of {TEACHER} ({type(error).__name__})") from None
    if not all(tensor.float().isfinite().all() for tensor in network.state_dict().values()):
        raise WeightsError(f"{folder / MODEL} holds NaN or infinite values")
    return description, network
