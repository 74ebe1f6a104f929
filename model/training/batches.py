"""Where a training step's batch comes from: views of all images, made for one epoch or kept.

A view is an image as augmentation and mixing leave it, with its soft target and what the teacher says of exactly this
view. Views are made for a whole epoch at once, in PIECES that are larger than a batch: augmentation is many small
operations, and a GPU that gets them batch by batch waits for the next one most of the time. Asking a large teacher
costs more than training a small pupil; with `views` in the recipe each image has so many views, made in the first
epochs and seen again in turn afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msmlp.model.training.augment import mix
from msmlp.model.training.losses import Lesson
from msmlp.model.training.recipes import Recipe

Teach = Callable[[Tensor], Lesson]
PIECE = 4096 * 32 * 32
"""Pixels that are augmented together, and shown to the teacher."""
VIEWS_APART = 500_009
"""Added to the seed of views: else with seed 0 they would be made in the very order in which an epoch trains."""


@dataclass(frozen=True)
class Arrays:
    """One split on the training device: pixels uint8 [N, 3, H, W], labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """Views of n images: pixels uint8 [n, 3, H, W], targets [n, classes], the teacher's lesson where there is a
    teacher; floats in half precision."""

    pixels: Tensor
    targets: Tensor
    lesson: Lesson | None

    def rows(self, rows: Tensor) -> "Batch":
        """The views of the images `rows` [m]."""
        return Batch.of([tensor[rows] for tensor in self.tensors()])

    def tensors(self) -> list[Tensor]:
        """All there is, in one order."""
        lesson = [] if self.lesson is None else [self.lesson.logits, self.lesson.features]
        return [self.pixels, self.targets, *lesson]

    @staticmethod
    def of(tensors: list[Tensor]) -> "Batch":
        """The reverse of `tensors`."""
        pixels, targets, *lesson = tensors
        return Batch(pixels, targets, Lesson(*lesson) if lesson else None)


class Batches:
    """The views of one run."""

    def __init__(self, recipe: Recipe, augment: nn.Module, classes: int, teach: Teach | None, seed: int) -> None:
        self.recipe, self.augment, self.classes, self.teach, self.seed = recipe, augment, classes, teach, seed
        self._kept: dict[int, Batch] = {}

    def of_epoch(self, data: Arrays, epoch: int) -> Batch:
        """A view of every image, for epoch `epoch` (0-based)."""
        if not self.recipe.views:
            return self._made(data, epoch)
        number = epoch % self.recipe.views
        if number not in self._kept:
            self._kept[number] = self._made(data, number)
        return self._kept[number]

    @torch.no_grad()
    def _made(self, data: Arrays, number: int) -> Batch:
        """View `number` of all images. Seeded by itself, so that a resumed run sees it again, in whichever epoch."""
        images, size = len(data.labels), self.recipe.batch_size
        in_piece = max(1, PIECE // data.pixels[0, 0].numel() // size) * size
        made: list[Tensor] = []
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1_000_033 + VIEWS_APART + number)
            for rows in torch.randperm(images).to(data.pixels.device).split(in_piece):
                views = self._views(data.pixels[rows], data.labels[rows]).tensors()
                made = made or [view.new_empty(images, *view.shape[1:]) for view in views]
                for kept, view in zip(made, views, strict=True):
                    kept[rows] = view
        return Batch.of(made)

    def _views(self, pixels: Tensor, labels: Tensor) -> Batch:
        """Of one piece; pairs are mixed within a batch."""
        augmented = self.augment(pixels.float() / 255).split(self.recipe.batch_size)
        batches = zip(augmented, labels.split(self.recipe.batch_size), strict=True)
        mixed = [mix(self.recipe, images, of, self.classes) for images, of in batches]
        images, targets = (torch.cat(parts) for parts in zip(*mixed, strict=True))
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        # The teacher sees what is kept, not what was there before rounding.
        lesson = None if self.teach is None else self.teach(pixels.float() / 255)
        return Batch(pixels, targets.half(), None if lesson is None else lesson.half())
