"""Mixing, and the views of a run with the teacher's targets for exactly these views."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msmlp.model.training.augment import augmentation
from msmlp.model.training.batches import Arrays, Batches, mix
from msmlp.model.training.loop import Learner, train_epoch
from msmlp.model.training.losses import TeacherTargets
from msmlp.model.training.pretrained import Teacher
from msmlp.model.training.recipes import RECIPES, Recipe
from msmlp.model.training.trainer import TrainOptions, train
from tests.model.training.test_trainer import assert_same_run, interrupt_in_epoch

PLAIN = RECIPES["best"].model_copy(update={"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0})


def coloured(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is all of value i, and of class i."""
    labels = torch.arange(count)
    return labels.double().reshape(-1, 1, 1, 1).expand(count, 3, size, size).clone(), labels


@given(seed=st.integers(0, 10**6), alpha=st.floats(0.1, 4), size=st.integers(1, 20))
def test_cutmix_targets_are_the_pasted_area(seed: int, alpha: float, size: int) -> None:
    images, labels = coloured(5, size)
    torch.manual_seed(seed)
    mixed, targets = mix(PLAIN.model_copy(update={"cutmix": alpha}), images, labels, 5)
    shares = torch.stack([(mixed == value).double().mean((1, 2, 3)) for value in range(5)], dim=1)
    torch.testing.assert_close(targets, shares, rtol=0, atol=1e-9)
    torch.testing.assert_close(targets.sum(1), torch.ones(5, dtype=torch.float64))


@given(seed=st.integers(0, 10**6), alpha=st.floats(0.1, 4))
def test_mixup_targets_are_the_shares_of_the_pixels(seed: int, alpha: float) -> None:
    images, labels = coloured(5, 4)
    torch.manual_seed(seed)
    mixed, targets = mix(PLAIN.model_copy(update={"mixup": alpha}), images, labels, 5)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ labels.double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(targets.sum(1), torch.ones(5, dtype=torch.float64))


def kinds_drawn(recipe: Recipe) -> set[str]:
    """Which of the two (or none) appear in thirty batches."""
    found = set()
    for seed in range(30):
        images, labels = coloured(6, 8)
        torch.manual_seed(seed)
        mixed, _ = mix(recipe, images, labels, 6)
        if torch.equal(mixed, images):
            found.add("none")
        else:
            found.add("cutmix" if torch.equal(mixed, mixed.round()) else "mixup")
    return found


def test_which_kinds_of_mixing_a_recipe_draws() -> None:
    both = PLAIN.model_copy(update={"mixup": 1.0, "cutmix": 1.0})
    assert {"mixup", "cutmix"} <= kinds_drawn(both)
    assert "cutmix" not in kinds_drawn(both.model_copy(update={"cutmix": 0.0}))
    assert "mixup" not in kinds_drawn(both.model_copy(update={"mixup": 0.0}))
    assert kinds_drawn(PLAIN) == {"none"}
    assert kinds_drawn(both.model_copy(update={"mix_probability": 0.0})) == {"none"}


def test_unmixed_targets_are_the_labels() -> None:
    images, labels = coloured(4, 3)
    mixed, targets = mix(PLAIN, images, labels, 6)
    assert torch.equal(mixed, images)
    assert targets.tolist() == [[float(column == row) for column in range(6)] for row in range(4)]


Build = Callable[[Recipe], Learner]


class Asked:
    """A teacher that records its images, and whose targets are their mean colour."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> TeacherTargets:
        self.images.append(images)
        return TeacherTargets(4 * images.mean((2, 3)), images.mean((2, 3))[:, :, None, None].expand(-1, -1, 2, 2))


@pytest.fixture
def views(plain: Recipe) -> Recipe:
    return plain.model_copy(update={"augment": "crop-flip", "cutmix": 1.0, "epochs_per_view": 3})


def batches(recipe: Recipe, teacher: Any = None, seed: int = 0) -> Batches:
    return Batches(recipe, augmentation(recipe, 8), 3, teacher, seed)


def test_views_are_reused_and_the_teacher_sees_each_once(views: Recipe, arrays: Arrays) -> None:
    asked = Asked()
    made = batches(views, asked)
    seen = [made.of_epoch(arrays, epoch) for epoch in range(6)]
    assert sum(len(images) for images in asked.images) == 2 * 30
    assert not torch.equal(seen[0][0], seen[3][0])
    for first in (0, 3):  # pixels, targets, logits, features
        plain, mirrored, again = seen[first : first + 3]
        assert torch.equal(plain[0].flip(3), mirrored[0])
        assert torch.equal(plain[1], mirrored[1])
        assert torch.equal(plain[2], mirrored[2])
        assert torch.equal(plain[3].flip(3), mirrored[3])
        assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_without_augmentation_no_view_is_mirrored(plain: Recipe, arrays: Arrays) -> None:
    made = batches(plain.model_copy(update={"epochs_per_view": 2}))
    assert torch.equal(made.of_epoch(arrays, 1)[0], arrays.pixels)


def test_the_teachers_targets_are_of_the_same_view(views: Recipe, arrays: Arrays) -> None:
    made = batches(views, Asked()).of_epoch(arrays, 0)
    rows = torch.tensor([17, 3, 29])
    pixels, targets, logits, features = (view[rows] for view in made)
    # Answers are kept in half precision.
    assert torch.allclose(logits.float(), 4 * (pixels / 255).mean((2, 3)), atol=4e-3)
    assert features.shape == (3, 3, 2, 2)
    assert targets.shape == (3, 3)
    assert torch.allclose(targets.float().sum(1), torch.ones(3), atol=1e-3)


def test_a_view_without_augmentation_is_the_image(plain: Recipe, arrays: Arrays) -> None:
    made = batches(plain)
    pixels, targets = made.of_epoch(arrays, 0)
    assert torch.equal(pixels, arrays.pixels)
    assert torch.equal(targets.argmax(1), arrays.labels)


def test_a_view_does_not_depend_on_when_it_is_made(views: Recipe, arrays: Arrays) -> None:
    early, late = (batches(views) for _ in range(2))
    early.of_epoch(arrays, 0)
    first = early.of_epoch(arrays, 3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = late.of_epoch(arrays, 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(torch.get_rng_state(), state)
    other = batches(views, seed=1).of_epoch(arrays, 3)
    assert not torch.equal(first[0], other[0])


def test_alternating_flips_show_every_image_from_both_sides_in_turn(plain: Recipe, arrays: Arrays) -> None:
    made = batches(plain.model_copy(update={"augment": "crop-flip", "flip": "alternating"}))
    made.augment = torch.nn.Identity()
    first, second, third = (made.of_epoch(arrays, epoch)[0] for epoch in range(3))
    mirrored = (first != arrays.pixels).flatten(1).any(1)
    assert 5 < mirrored.sum() < 25
    assert torch.equal(first[mirrored], arrays.pixels[mirrored].flip(3))
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)
    other = batches(made.recipe, seed=1)
    other.augment = torch.nn.Identity()
    assert not torch.equal(other.of_epoch(arrays, 0)[0], first)


def test_by_default_every_epoch_has_views_of_its_own(views: Recipe, arrays: Arrays) -> None:
    recipe = views.model_copy(update={"epochs_per_view": 1})
    asked = Asked()
    made = batches(recipe, asked)
    first, second = (made.of_epoch(arrays, epoch) for epoch in range(2))
    assert not torch.equal(first[0], second[0])
    assert sum(len(images) for images in asked.images) == 2 * 30
    resumed = batches(recipe).of_epoch(arrays, 1)
    assert torch.equal(resumed[0], second[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_views_are_not_made_in_the_order_of_training(seed: int, plain: Recipe, arrays: Arrays) -> None:
    """Else images that were augmented and mixed together would stay together."""
    asked = Asked()
    batches(plain, asked, seed).of_epoch(arrays, 0)
    made = torch.cat(asked.images)
    torch.manual_seed(seed * 1_000_003)  # as trainer.py does before an epoch
    trained = arrays.pixels[torch.randperm(30)].float() / 255
    same = [torch.equal(one, other) for one, other in zip(made, trained, strict=True)]
    assert sum(same) < 10


@pytest.mark.parametrize("piece", [64, 24 * 64, 4096 * 64])
def test_every_image_has_one_view_however_many_are_made_together(
    piece: int, plain: Recipe, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmlp.model.training.batches.PIECE", piece)
    pixels, targets = batches(plain).of_epoch(arrays, 0)
    assert torch.equal(pixels, arrays.pixels)
    assert torch.equal(targets.argmax(1), arrays.labels)


def test_an_epoch_of_views_trains(views: Recipe, learner: Build, arrays: Arrays) -> None:
    teacher = Teacher("made up", "0" * 64, ("a", "b", "c"), None, 8, 3, Asked())
    made = replace(learner(views), teacher=teacher)
    losses = [train_epoch(made, arrays, epoch, lambda *_: None)[0] for epoch in range(6)]
    assert losses[2] < losses[0]
    assert losses[5] < losses[3]


def test_a_resumed_run_sees_the_same_views(
    short_run: Callable[..., TrainOptions], convolutional: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"epochs_per_view": 2, "imitation": 0.5, "last_weight": 0.2}
    whole = train(short_run(changes=changes, teacher=convolutional))
    options = short_run(changes=changes, teacher=convolutional)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(Exception, match="1 of 4 epochs are saved"):
            train(options)
    assert_same_run(whole, train(replace(options, resume=True)))
