"""Crops and mirror images, and TrivialAugment's operations against Pillow's, which the authors used."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from msmlp.bench.images import squares
from msmlp.model.training.augment import LEVELS, OPERATIONS, CropFlip, TrivialAugment, augmentation
from msmlp.model.training.recipes import RECIPES

PLAIN = RECIPES["best"].model_copy(update={"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0})


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """1,000 squares of 32 pixels of five photographs, in [0, 1]."""
    import skimage.data

    names = ("astronaut", "coffee", "chelsea", "rocket", "cat")
    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in names]
    found = np.concatenate([squares(photograph, 200, 32) for photograph in photographs])
    return as_images(found)


def as_images(pixels: Any) -> Tensor:
    """uint8 [N, H, W, 3] → float [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def levels(images: Tensor) -> Tensor:
    return (images * 255).round()


@pytest.mark.parametrize("size", [8, 32, 45])
@pytest.mark.parametrize("kind", ["none", "crop-flip", "trivial"])
def test_shape_and_range_stay(kind: str, size: int) -> None:
    steps = augmentation(PLAIN.model_copy(update={"augment": kind, "erasing": 0.5}), size)
    torch.manual_seed(0)
    for _ in range(15):
        images = torch.rand(8, 3, size, size)
        images[:2] = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
        changed = steps(images)
        assert changed.shape == images.shape
        assert changed.dtype == images.dtype
        assert changed.isfinite().all()
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_none_changes_nothing() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(augmentation(PLAIN.model_copy(update={"augment": "none"}), 8)(images), images)


@pytest.mark.parametrize("kind", ["crop-flip", "trivial"])
def test_one_seed_repeats_the_draw_and_another_does_not(kind: str) -> None:
    steps = augmentation(PLAIN.model_copy(update={"augment": kind, "erasing": 0.25}), 16)
    images = torch.rand(32, 3, 16, 16)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(steps(images))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("batch", [1, 2, 11, 17])
def test_any_batch_size_is_augmented(batch: int) -> None:
    steps = augmentation(PLAIN.model_copy(update={"augment": "trivial"}), 16)
    assert steps(torch.rand(batch, 3, 16, 16)).shape == (batch, 3, 16, 16)


# --- crops and mirror images -------------------------------------------------------------------------------------


def test_every_image_is_a_crop_of_its_padded_self_and_all_crops_occur() -> None:
    images = torch.rand(3000, 3, 5, 5)
    torch.manual_seed(0)
    moved = CropFlip(2)(images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    matches = {
        (top, left, mirrored): (moved == (crop.flip(3) if mirrored else crop)).flatten(1).all(1)
        for top in range(5)
        for left in range(5)
        for crop in [padded[:, :, top : top + 5, left : left + 5]]
        for mirrored in (False, True)
    }
    assert torch.stack(list(matches.values())).sum(0).eq(1).all()
    counts = torch.tensor([int(found.sum()) for found in matches.values()])
    assert counts.min() > 0.5 * 3000 / 50
    assert counts.max() < 1.6 * 3000 / 50


def test_with_alternating_flips_it_mirrors_nothing_itself() -> None:
    steps = augmentation(PLAIN.model_copy(update={"augment": "crop-flip", "flip": "alternating"}), 16)
    columns = torch.arange(1.0, 17).expand(200, 3, 16, 16)
    moved = steps(columns)
    assert ((moved.diff(dim=3) >= 0) | (moved[..., 1:] == 0)).all()


def test_pictures_of_32_pixels_are_padded_with_four() -> None:
    torch.manual_seed(0)
    moved = augmentation(PLAIN.model_copy(update={"augment": "crop-flip"}), 32)(torch.ones(500, 3, 32, 32))
    black = (moved[:, 0] == 0).all(1).sum(1)
    assert black.unique().tolist() == [0, 1, 2, 3, 4]


# --- TrivialAugment ----------------------------------------------------------------------------------------------

AFFINE = Image.Transform.AFFINE

PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "auto contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": lambda image, degrees: image.rotate(degrees),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "shear x": lambda image, share: image.transform(image.size, AFFINE, (1, share, 0, 0, 1, 0)),
    "shear y": lambda image, share: image.transform(image.size, AFFINE, (1, 0, 0, share, 1, 0)),
    "translate x": lambda image, pixels: image.transform(image.size, AFFINE, (1, 0, pixels, 0, 1, 0)),
    "translate y": lambda image, pixels: image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, pixels)),
}

PUBLISHED = {
    "identity": {0},
    "auto contrast": {0},
    "equalize": {0},
    "rotate": {-30, 30},
    "solarize": {0, 256},
    "color": {0.1, 1.9},
    "posterize": {4, 8},
    "contrast": {0.1, 1.9},
    "brightness": {0.1, 1.9},
    "sharpness": {0.1, 1.9},
    "shear x": {-0.3, 0.3},
    "shear y": {-0.3, 0.3},
    "translate x": {-10, 10},
    "translate y": {-10, 10},
}
"""Pixels, of 32, for translations. Müller and Hutter (2021), the standard space."""


def test_operations_are_those_published() -> None:
    assert set(OPERATIONS) == set(PUBLISHED)


@pytest.mark.parametrize("end", [0, 1], ids=["low", "high"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_at_the_ends_of_its_published_range_is_pillows(name: str, end: int, pictures: Tensor) -> None:
    operation, *ends = OPERATIONS[name]
    unit = 32 if name.startswith("translate") else 1
    assert {round(unit * each, 6) for each in ends} == PUBLISHED[name]
    images = pictures[::10]
    found = levels(operation(images, torch.full((len(images),), float(ends[end]))))
    plain = levels(images).byte().permute(0, 2, 3, 1).numpy()
    theirs = [np.asarray(PILLOW[name](Image.fromarray(each), ends[end] * unit)) for each in plain]
    expected = levels(as_images(np.stack(theirs)))
    # Pillow cuts fractions off and rounds places of pixels by its own rule.
    agree = (found - expected).abs() <= 1
    assert agree.float().mean() > (0.97 if name == "rotate" else 0.999)


def test_without_effect_nothing_changes(pictures: Tensor) -> None:
    neutral = {"rotate": 0, "solarize": 256, "posterize": 8, "color": 1, "contrast": 1, "brightness": 1, "sharpness": 1}
    neutral |= dict.fromkeys(("identity", "shear x", "shear y", "translate x", "translate y"), 0)
    for name, value in neutral.items():
        found = OPERATIONS[name][0](pictures, torch.full((len(pictures),), float(value)))
        assert torch.equal(levels(found), levels(pictures)), name


def test_every_image_has_its_own_operation_and_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that write their number and strength show what was drawn."""

    def marks(number: int) -> Callable[[Tensor, Tensor], Tensor]:
        def mark(images: Tensor, strength: Tensor) -> Tensor:
            marked = images.clone()
            marked[:, 0] = number
            marked[:, 1] = strength.reshape(-1, 1, 1)
            return marked

        return mark

    for number, name in enumerate(OPERATIONS):
        monkeypatch.setitem(OPERATIONS, name, (marks(number), number, number + 0.5))
    images = torch.arange(14000.0).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    torch.manual_seed(0)
    numbers, strengths, kept = TrivialAugment()(images)[..., 0, 0].unbind(1)
    assert torch.equal(kept, images[:, 2, 0, 0])
    counts = numbers.long().bincount(minlength=14)
    assert counts.min() > 850
    assert counts.max() < 1150
    steps = (strengths - numbers) / 0.5 * (LEVELS - 1)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert set(steps.round().long().tolist()) == set(range(LEVELS))


def test_a_share_of_images_comes_back_unchanged(pictures: Tensor) -> None:
    torch.manual_seed(0)
    changed = TrivialAugment()(pictures)
    same = (changed == pictures).flatten(1).all(1).float().mean()
    # One operation of fourteen, and what has no effect by chance.
    assert 1 / 14 - 0.03 < same < 1 / 14 + 0.12


def test_hardly_any_view_is_destroyed(pictures: Tensor) -> None:
    """All of one colour, of a picture that is not; nearly flat ones, such as sky, are left out."""

    def spread(images: Tensor) -> Tensor:
        return (images.amax((2, 3)) - images.amin((2, 3))).amax(1)

    lively = pictures[spread(levels(pictures)) >= 32]
    assert len(lively) > 800
    torch.manual_seed(0)
    flat = [int((spread(levels(TrivialAugment()(lively))) == 0).sum()) for _ in range(8)]
    assert sum(flat) / (8 * len(lively)) < 0.0005
