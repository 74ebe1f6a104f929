"""Where a training step's batch comes from: fresh views of the images, or views that are kept.

A view is an image as augmentation and mixing leave it, with its soft target and what the teacher says of exactly this
view. Asking a large teacher costs more than training a small pupil; with `views` in the recipe each image has so many
views, made in the first epochs and seen again in turn afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.training.augment import mix
from model.training.losses import Lesson
from model.training.recipes import Recipe

Teach = Callable[[Tensor], Lesson]


@dataclass(frozen=True)
class Arrays:
    """One split on the training device: pixels uint8 [N, 3, H, W], labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """images [n, 3, H, W] in [0, 1], targets [n, classes], the teacher's lesson where there is a teacher."""

    images: Tensor
    targets: Tensor
    lesson: Lesson | None


@dataclass(frozen=True)
class Views:
    """One view of every image: pixels uint8 [N, 3, H, W], targets and lesson [N, ...]; floats in half precision."""

    pixels: Tensor
    targets: Tensor
    lesson: Lesson | None

    def batch(self, rows: Tensor) -> Batch:
        """The views of the images `rows` [n]."""
        lesson = None
        if self.lesson is not None:
            lesson = Lesson(self.lesson.logits[rows].float(), self.lesson.features[rows].float())
        return Batch(self.pixels[rows].float() / 255, self.targets[rows].float(), lesson)


class Batches:
    """The batches of one run."""

    def __init__(self, recipe: Recipe, augment: nn.Module, classes: int, teach: Teach | None, seed: int) -> None:
        self.recipe, self.augment, self.classes, self.teach, self.seed = recipe, augment, classes, teach, seed
        self._kept: dict[int, Views] = {}

    def of_epoch(self, data: Arrays, epoch: int) -> Callable[[Tensor], Batch]:
        """A function from rows [n] to their batch, for epoch `epoch` (0-based)."""
        if not self.recipe.views:
            return lambda rows: self._fresh(data, rows)
        number = epoch % self.recipe.views
        if number not in self._kept:
            self._kept[number] = self._made(data, number)
        return self._kept[number].batch

    def _fresh(self, data: Arrays, rows: Tensor) -> Batch:
        images, targets = self._augmented(data, rows)
        return Batch(images, targets, None if self.teach is None else self.teach(images))

    def _augmented(self, data: Arrays, rows: Tensor) -> tuple[Tensor, Tensor]:
        images = self.augment(data.pixels[rows].float() / 255)
        return mix(self.recipe, images, data.labels[rows], self.classes)

    @torch.no_grad()
    def _made(self, data: Arrays, number: int) -> Views:
        """View `number` of all images. Seeded by itself, so that a resumed run sees it again, in whichever epoch."""
        images, device = len(data.labels), data.pixels.device
        kept: list[tuple[Tensor, Tensor, Tensor, Lesson | None]] = []
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1_000_033 + number)
            for rows in torch.randperm(images).to(device).split(self.recipe.batch_size):
                augmented, targets = self._augmented(data, rows)
                pixels = (augmented * 255).round().clamp(0, 255).to(torch.uint8)
                # The teacher sees what is kept, not what was there before rounding.
                lesson = None if self.teach is None else self.teach(pixels.float() / 255)
                kept.append((rows, pixels, targets, lesson))
        order = torch.cat([rows for rows, *_ in kept]).argsort()
        lessons = [lesson for *_, lesson in kept if lesson is not None]
        return Views(
            torch.cat([pixels for _, pixels, _, _ in kept])[order],
            torch.cat([targets.half() for _, _, targets, _ in kept])[order],
            Lesson(*(torch.cat([part.half() for part in parts])[order] for parts in _columns(lessons)))
            if lessons
            else None,
        )


def _columns(lessons: list[Lesson]) -> tuple[list[Tensor], list[Tensor]]:
    return [lesson.logits for lesson in lessons], [lesson.features for lesson in lessons]
