"""Fresh and kept views: what a pupil sees, and that the teacher speaks of exactly that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msmlp.model.training.batches import Arrays, Batches
from msmlp.model.training.loop import Learner, train_epoch
from msmlp.model.training.losses import Lesson
from msmlp.model.training.recipes import Recipe
from msmlp.model.training.teacher import Teacher
from msmlp.model.training.trainer import TrainOptions, train
from tests.model.training.test_trainer import assert_same_run, interrupt_in_epoch

Build = Callable[[Recipe], Learner]


class Asked:
    """A teacher that notes what it is asked, and says the mean colour."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> Lesson:
        self.images.append(images)
        return Lesson(4 * images.mean((2, 3)), images.mean((2, 3))[:, :, None, None].expand(-1, -1, 2, 2))


@pytest.fixture
def views(plain: Recipe) -> Recipe:
    return plain.model_copy(update={"augment": "crop-flip", "cutmix": 1.0, "views": 2})


def batches(recipe: Recipe, learner: Build, teach: Any = None, seed: int = 0) -> Batches:
    return Batches(recipe, learner(recipe).augment, 3, teach, seed)


def test_views_come_round_and_the_teacher_is_asked_once_for_each(views: Recipe, learner: Build, arrays: Arrays) -> None:
    asked = Asked()
    made = batches(views, learner, asked)
    seen = [made.of_epoch(arrays, epoch) for epoch in range(5)]
    assert sum(len(images) for images in asked.images) == 2 * 30
    assert torch.equal(seen[0].pixels, seen[2].pixels)
    assert torch.equal(seen[1].pixels, seen[3].pixels)
    assert not torch.equal(seen[0].pixels, seen[1].pixels)


def test_the_teacher_speaks_of_the_very_view_of_each_image(views: Recipe, learner: Build, arrays: Arrays) -> None:
    made = batches(views, learner, Asked()).of_epoch(arrays, 0)
    batch = made.rows(torch.tensor([17, 3, 29]))
    assert batch.lesson is not None
    # Answers are kept in half precision.
    assert torch.allclose(batch.lesson.logits.float(), 4 * (batch.pixels / 255).mean((2, 3)), atol=4e-3)
    assert batch.lesson.features.shape == (3, 3, 2, 2)
    assert batch.targets.shape == (3, 3)
    assert torch.allclose(batch.targets.float().sum(1), torch.ones(3), atol=1e-3)


def test_a_view_without_augmentation_is_the_image(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    made = batches(plain.model_copy(update={"views": 1}), learner)
    batch = made.of_epoch(arrays, 0)
    assert torch.equal(batch.pixels, arrays.pixels)
    assert torch.equal(batch.targets.argmax(1), arrays.labels)
    assert batch.lesson is None


def test_a_view_does_not_depend_on_when_it_is_made(views: Recipe, learner: Build, arrays: Arrays) -> None:
    early, late = (batches(views, learner) for _ in range(2))
    first = early.of_epoch(arrays, 0)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = late.of_epoch(arrays, 4)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(torch.get_rng_state(), state)
    other = batches(views, learner, seed=1).of_epoch(arrays, 0)
    assert not torch.equal(first.pixels, other.pixels)


def test_without_kept_views_every_epoch_has_its_own(views: Recipe, learner: Build, arrays: Arrays) -> None:
    recipe = views.model_copy(update={"views": 0})
    asked = Asked()
    made = batches(recipe, learner, asked)
    first, second = (made.of_epoch(arrays, epoch) for epoch in range(2))
    assert not torch.equal(first.pixels, second.pixels)
    assert sum(len(images) for images in asked.images) == 2 * 30
    resumed = batches(recipe, learner).of_epoch(arrays, 1)
    assert torch.equal(resumed.pixels, second.pixels)


@pytest.mark.parametrize("seed", [0, 1])
def test_views_are_not_made_in_the_order_of_training(seed: int, plain: Recipe, learner: Build, arrays: Arrays) -> None:
    """Else images that were augmented and mixed together would stay together."""
    asked = Asked()
    batches(plain, learner, asked, seed).of_epoch(arrays, 0)
    made = torch.cat(asked.images)
    torch.manual_seed(seed * 1_000_003)  # as trainer.py does before an epoch
    trained = arrays.pixels[torch.randperm(30)].float() / 255
    same = [torch.equal(one, other) for one, other in zip(made, trained, strict=True)]
    assert sum(same) < 10


@pytest.mark.parametrize("piece", [64, 24 * 64, 4096 * 64])
def test_every_image_has_one_view_however_many_are_made_together(
    piece: int, plain: Recipe, learner: Build, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmlp.model.training.batches.PIECE", piece)
    made = batches(plain, learner).of_epoch(arrays, 0)
    assert torch.equal(made.pixels, arrays.pixels)
    assert torch.equal(made.targets.argmax(1), arrays.labels)


def test_an_epoch_of_views_trains(views: Recipe, learner: Build, arrays: Arrays) -> None:
    teacher = Teacher("made up", "0" * 64, ("a", "b", "c"), 8, None, 3, Asked())
    made = replace(learner(views), teacher=teacher)
    losses = [train_epoch(made, arrays, epoch, lambda *_: None)[0] for epoch in range(4)]
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]


def test_a_resumed_run_sees_the_same_views(
    short_run: Callable[..., TrainOptions], convolutional: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"views": 2, "imitation": 0.5, "last_weight": 0.2}
    whole = train(short_run(changes=changes, teacher=convolutional))
    options = short_run(changes=changes, teacher=convolutional)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(Exception, match="1 of 4 epochs are safe"):
            train(options)
    assert_same_run(whole, train(replace(options, resume=True)))
