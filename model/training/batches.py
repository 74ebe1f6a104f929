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

from model.training.augment import mix
from model.training.losses import Lesson
from model.training.recipes import Recipe

Teach = Callable[[Tensor], Lesson]
PIECE = 4096
"""Images that are augmented together."""


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
        images, device, size = len(data.labels), data.pixels.device, self.recipe.batch_size
        made: list[list[Tensor]] = []
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1_000_033 + number)
            order = torch.randperm(images).to(device)
            for piece in order.split(max(1, PIECE // size) * size):
                augmented = self.augment(data.pixels[piece].float() / 255)
                for views, rows in zip(augmented.split(size), piece.split(size), strict=True):
                    made.append(self._view(views, data.labels[rows]).tensors())
        back = order.argsort()
        return Batch.of([torch.cat(parts)[back] for parts in zip(*made, strict=True)])

    def _view(self, augmented: Tensor, labels: Tensor) -> Batch:
        """Pairs are mixed within a batch."""
        images, targets = mix(self.recipe, augmented, labels, self.classes)
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        # The teacher sees what is kept, not what was there before rounding.
        lesson = None if self.teach is None else self.teach(pixels.float() / 255)
        return Batch(pixels, targets.half(), None if lesson is None else lesson.half())
