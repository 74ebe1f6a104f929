"""Augmentation on the training device, all images of a call at once: crops, mirror images, TrivialAugment and erasing.

Images are [N, 3, size, size] in [0, 1], multiples of 1/255. Draws come from torch's generators.
"""

from collections.abc import Callable

import kornia.augmentation as K
import kornia.enhance as KE
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.training.recipes import Recipe

LEVELS = 31
"""Strengths of an operation, evenly spaced over its range, as published."""


def augmentation(recipe: Recipe, size: int) -> nn.Module:
    """The recipe's augmentation: images [N, 3, size, size] in [0, 1] → the same shape and range."""
    steps: list[nn.Module] = []
    if recipe.augment != "none":
        steps.append(CropFlip(max(1, size // 8), flip=recipe.flip == "random"))  # the customary 4 at 32 pixels
    if recipe.augment == "trivial":
        steps.append(TrivialAugment())
    if recipe.erasing:
        steps.append(K.RandomErasing(p=recipe.erasing))
    return nn.Sequential(*steps)


class CropFlip(nn.Module):
    """Pads every image with `pad` black pixels on each side, crops it at random to its size, and with `flip` mirrors
    half of them."""

    def __init__(self, pad: int, *, flip: bool = True) -> None:
        super().__init__()
        self.pad, self.flip = pad, flip

    def forward(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        device = images.device
        top, left = torch.randint(2 * self.pad + 1, (2, count, 1), device=device)
        mirrored = torch.rand(count, 1, device=device) < (0.5 if self.flip else 0)
        forwards = torch.arange(width, device=device)
        columns = left + torch.where(mirrored, forwards.flip(0), forwards)
        rows = top + torch.arange(height, device=device)
        places = rows[:, :, None] * (width + 2 * self.pad) + columns[:, None]
        padded = F.pad(images, (self.pad,) * 4).flatten(2)
        return padded.gather(2, places.flatten(1)[:, None].expand(-1, channels, -1)).reshape(images.shape)


class TrivialAugment(nn.Module):
    """One of OPERATIONS for each image, at one of LEVELS strengths, both uniform (Müller and Hutter, 2021)."""

    def forward(self, images: Tensor) -> Tensor:
        chosen = torch.randint(len(OPERATIONS), images.shape[:1], device=images.device)
        level = torch.randint(LEVELS, images.shape[:1], device=images.device)
        changed = images.clone()
        for number, (operation, low, high) in enumerate(OPERATIONS.values()):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                strength = low + (high - low) / (LEVELS - 1) * level[rows]
                changed[rows] = operation(images[rows], strength)
        return changed


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1 / 255), images)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return _moved(images, {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos})


def _moved(images: Tensor, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Every pixel becomes its nearest at (x', y') = A (x, y, 1), or black; A is the identity but for `entries`.

    x and y run from -1 to 1 between the edges of an image; an entry has a number per image.
    """
    matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)


OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "identity": (lambda images, _: images, 0, 0),
    "auto contrast": (_auto_contrast, 0, 0),
    "equalize": (lambda images, _: KE.equalize(images), 0, 0),
    "rotate": (_rotate, -30, 30),
    "solarize": (lambda images, threshold: KE.solarize(images, threshold / 255), 256, 0),
    "color": (KE.adjust_saturation_with_gray_subtraction, 0.1, 1.9),
    "posterize": (lambda images, bits: KE.posterize(images, bits.round().int()), 8, 4),
    "contrast": (KE.adjust_contrast_with_mean_subtraction, 0.1, 1.9),
    "brightness": (KE.adjust_brightness_accumulative, 0.1, 1.9),
    "sharpness": (KE.sharpness, 0.1, 1.9),
    # About the upper left corner.
    "shear x": (lambda images, share: _moved(images, {(0, 1): share, (0, 2): share}), -0.3, 0.3),
    "shear y": (lambda images, share: _moved(images, {(1, 0): share, (1, 2): share}), -0.3, 0.3),
    "translate x": (lambda images, share: _moved(images, {(0, 2): 2 * share}), -10 / 32, 10 / 32),
    "translate y": (lambda images, share: _moved(images, {(1, 2): 2 * share}), -10 / 32, 10 / 32),
}
"""Each operation and the ends of its range: the standard space of the authors' code, where translations are by up to 10
pixels of 32, or 70 of 224. (Their wide space moves pictures of 32 pixels by up to 32, and so leaves black ones.)"""
