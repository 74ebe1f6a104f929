"""What a teacher is made of, as plain data: convolutional networks that only ever train cascades, never serve.

`vgg`: groups of convolutions, each group at half the resolution of the one before, wide where pictures are small: the
shape of the fast CIFAR networks (Jordan, 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU").
`resnet`: pre-activation residual blocks (He et al., 2016), which with 10 times the width of the first are the Wide
ResNets (Zagoruyko and Komodakis, 2016).
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TeacherConfig(BaseModel):
    """A convolutional network: `widths` channels in each group, `blocks` blocks a group.

    A block is one convolution of a `vgg`, two of a `resnet`. Every group of a `vgg` halves the resolution, of a
    `resnet` every group but the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vgg", "resnet"]
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    blocks: int = Field(ge=1)
    stem: int = Field(ge=1, description="channels of the first convolution")
    image_size: int = Field(default=32, ge=1)
    classes: int = Field(default=10, ge=2)

    @model_validator(mode="after")
    def _pixels_are_left(self) -> Self:
        if self.image_size >> len(self.widths) < 1:
            raise ValueError(f"{len(self.widths)} groups leave nothing of {self.image_size} pixels")
        return self


TEACHERS: dict[str, TeacherConfig] = {
    # Two minutes on digits; tests train it in a second.
    "teacher-tiny": TeacherConfig(kind="vgg", stem=8, widths=(16, 32), blocks=1),
    # What a CPU trains in half an hour.
    "teacher-s": TeacherConfig(kind="vgg", stem=24, widths=(64, 128, 256), blocks=2),
    # For a GPU.
    "teacher-resnet18": TeacherConfig(kind="resnet", stem=64, widths=(64, 128, 256, 512), blocks=2),
    "teacher-wrn28-10": TeacherConfig(kind="resnet", stem=16, widths=(160, 320, 640), blocks=4),
}


def teacher_gflops(config: TeacherConfig) -> float:
    """Multiply-adds / 1e9 of the convolutions and the head, for one image."""
    size, channels, total = config.image_size, config.stem, 27 * config.stem * config.image_size**2
    for group, width in enumerate(config.widths):
        for block in range(config.blocks):
            if config.kind == "vgg":
                total += 9 * channels * width * size**2  # the group's first convolution comes before its pooling
                size //= 2 if block == 0 else 1
            else:
                size //= 2 if block == 0 and group else 1
                total += 9 * (channels + width) * width * size**2
                total += channels * width * size**2 * (channels != width)
            channels = width
    return (total + channels * config.classes) / 1e9
