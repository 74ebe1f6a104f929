"""The convolutional networks that teach (teachers.py says of what they are made)."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.training.recipes import TeacherConfig


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


VGG_SCALE = 0.125
"""What a `vgg`'s logits are multiplied by: maxima are large, and large first logits make large steps diverge."""


class VggBlock(nn.Module):
    """Convolution → (pooling) → norm → GELU. Pooling before the norm is four times cheaper and no worse."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.halves = _convolution(inputs, outputs), nn.BatchNorm2d(outputs), halves

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H or H / 2, ...]."""
        x = self.convolution(x)
        return F.gelu(self.norm(F.max_pool2d(x, 2) if self.halves else x))


class ResidualBlock(nn.Module):
    """Norm → ReLU → convolution, twice, beside a path without them."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        stride = 2 if halves else 1
        self.norm1, self.convolution1 = nn.BatchNorm2d(inputs), _convolution(inputs, outputs, stride=stride)
        self.norm2, self.convolution2 = nn.BatchNorm2d(outputs), _convolution(outputs, outputs)
        same = inputs == outputs and not halves
        self.project = nn.Identity() if same else _convolution(inputs, outputs, kernel=1, stride=stride)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H or H / 2, ...]."""
        inside = F.relu(self.norm1(x))
        beside = x if self.same else self.project(inside)
        out: Tensor = beside + self.convolution2(F.relu(self.norm2(self.convolution1(inside))))
        return out


class ConvNet(nn.Module):
    """Stem, groups of blocks, pooling, a linear head."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config
        residual = config.kind == "resnet"
        blocks: list[nn.Module] = []
        channels = config.stem
        for group, width in enumerate(config.widths):
            for number in range(config.blocks):
                first = number == 0
                if residual:
                    blocks.append(ResidualBlock(channels, width, halves=first and group > 0))
                else:
                    blocks.append(VggBlock(channels, width, halves=first))
                channels = width
        self.stem = _convolution(3, config.stem) if residual else VggBlock(3, config.stem, halves=False)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) if residual else nn.Identity()
        self.head = nn.Linear(channels, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → the last feature map [N, C, h, w]."""
        out: Tensor = self.last(self.blocks(self.stem(images)))
        return out

    def classify(self, features: Tensor) -> Tensor:
        """The last feature map → logits [N, classes]. The strongest place of a map counts in a `vgg`, its mean in a
        `resnet`, as in their papers."""
        if self.config.kind == "resnet":
            out: Tensor = self.head(features.mean((2, 3)))
            return out
        return VGG_SCALE * cast(Tensor, self.head(features.amax((2, 3))))

    def outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Normalised images [N, 3, H, W] → its last feature map [N, C, h, w] and the logits of its one exit, as lists
        like a cascade's."""
        features = self.features(images)
        return [features], [self.classify(features)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] → the logits [N, classes] of its one exit."""
        return self.outputs(images)[1]
