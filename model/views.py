"""A decoded picture → the pixels that stages read. Every stage reads a *view*: a square, scaled and cropped for it.

A picture is decoded once, and scaled once for each view. The pixels of several views follow one another in one row.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from msmlp.model.profiles import PROFILE, to_srgb
from msmlp.model.shape import image_shape

Pixels = NDArray[np.uint8]

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
"""Both antialiased."""


LONG = 4
"""Photographs, and panoramas, are at most this many times as long as their shorter side."""
LARGEST = 4
"""How many times as large as the crop a picture is scaled at most."""


class Resize(BaseModel):
    """torchvision's and timm's `Resize(shorter_side)`, then `CenterCrop(size)`, with their rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shorter_side: int = Field(ge=1)
    filter: Literal["bicubic", "bilinear"] = "bicubic"


@dataclass(frozen=True)
class View:
    """A square of `size` pixels a side; without `resize` it is `to_square`'s."""

    size: int
    resize: Resize | None = None


@dataclass(frozen=True)
class Views:
    """The views of a cascade, in the order of their pixels."""

    views: tuple[View, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one image's pixels."""
        return image_shape(tuple(view.size for view in self.views))

    @cached_property
    def near(self) -> int | None:
        """To what size a large JPEG may be decoded at a reduced scale; None where that would change the pixels that
        other people's networks were trained with."""
        return self.views[0].size if self.views[0].resize is None and len(self.views) == 1 else None

    @cached_property
    def plain(self) -> int | None:
        """The size of pictures whose own pixels are those that the stages read."""
        view = self.views[0]
        whole = view.resize is None or view.resize.shorter_side == view.size
        return view.size if whole and len(self.views) == 1 else None

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB image of any size → uint8 [*shape]."""
        squares = [
            to_square(image, view.size) if view.resize is None else _cropped(image, view.size, view.resize)
            for view in self.views
        ]
        return squares[0] if len(squares) == 1 else np.concatenate([square.ravel() for square in squares])


Target = int | Views
"""What an image is scaled for. A size alone is the one view of our own networks."""


@lru_cache(maxsize=64)
def views_of(target: Target) -> Views:
    return target if isinstance(target, Views) else Views((View(target),))


def to_square(image: Image.Image, size: int) -> Pixels:
    """An RGB image of any size → uint8 [size, size, 3] in sRGB; a size x size image is not resampled."""
    if image.size == (size, size):
        return _in_srgb(image, image)
    return _in_srgb(ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC), image)


def _cropped(image: Image.Image, size: int, resize: Resize) -> Pixels:
    """Of a very long picture only the crop is computed: the whole would be larger than memory. It would be faster
    to do so for every picture, but Pillow rounds a box's ends, so pixels would differ by up to 2 levels from those the
    networks were trained on."""
    shorter, wanted = min(image.size), resize.shorter_side
    scaled = [wanted if side == shorter else int(wanted * side / shorter) for side in image.size]
    left, top = (round((side - size) / 2) for side in scaled)
    if tuple(scaled) == image.size == (size, size):
        return _in_srgb(image, image)
    if max(scaled) <= LONG * wanted:
        whole = image.resize((scaled[0], scaled[1]), FILTERS[resize.filter])
        return _in_srgb(whole.crop((left, top, left + size, top + size)), image)
    across, down = (side / to for side, to in zip(image.size, scaled, strict=True))
    ends = min((left + size) * across, image.width), min((top + size) * down, image.height)
    square = image.resize((size, size), FILTERS[resize.filter], box=(left * across, top * down, *ends))
    return _in_srgb(square, image)


def _in_srgb(square: Image.Image, image: Image.Image) -> Pixels:
    """The pixels of a part of an image, with the image's profile."""
    if profile := image.info.get(PROFILE):
        square = to_srgb(square, profile)
    # As np.asarray, at half the cost.
    return np.frombuffer(square.tobytes(), np.uint8).reshape(square.height, square.width, 3)
