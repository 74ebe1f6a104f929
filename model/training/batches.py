"""Augmentation on the training device, a whole batch at a time (kornia), and mixing of image pairs.

Every random draw comes from torch's generator, so seeding it repeats an epoch exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import kornia.augmentation as K
import torch
from kornia.augmentation.auto import TrivialAugment
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.preprocess import Preprocess
from msmlp.model.training.losses import Lesson
from msmlp.model.training.recipes import Recipe


def augmentation(recipe: Recipe, size: int) -> nn.Module:
    """Images [N, 3, size, size] in [0, 1] → the same shape and range, as the recipe says."""
    steps: list[nn.Module] = []
    if recipe.augment != "none":
        pad = max(1, size // 8)  # the customary 4 at 32 pixels
        steps += [K.RandomCrop((size, size), padding=pad, cropping_mode="slice"), K.RandomHorizontalFlip()]
    if recipe.augment == "trivial":
        steps.append(PiecewiseTrivialAugment())
    if recipe.erasing:
        steps.append(K.RandomErasing(p=recipe.erasing))
    return nn.Sequential(*steps)


def normalizer(preprocess: Preprocess, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images [N, 3, H, W] in [0, 1] → what a network trained with `preprocess` reads."""
    mean = torch.tensor(preprocess.mean, device=device).reshape(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, device=device).reshape(1, 3, 1, 1)
    return lambda images: (images - mean) / std


class PiecewiseTrivialAugment(nn.Module):
    """TrivialAugment, an operation for every PIECE images, or for a 16th of them where they are few.

    The published method draws an operation for every image; kornia draws one for all it is given, in one launch.
    """

    PIECE = 128

    def __init__(self) -> None:
        super().__init__()
        self.augment = TrivialAugment()

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] → the same."""
        pieces = max(16, len(images) // self.PIECE)
        return torch.cat([self.augment(piece) for piece in images.chunk(pieces)])


def mix(recipe: Recipe, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of the batch with itself shuffled → images, soft targets [N, classes]."""
    targets = F.one_hot(labels, classes).to(images.dtype)
    kinds = [kind for kind, alpha in (("mixup", recipe.mixup), ("cutmix", recipe.cutmix)) if alpha]
    if not kinds or torch.rand(()).item() >= recipe.mix_probability:
        return images, targets
    kind = kinds[int(torch.randint(len(kinds), ()).item())]
    alpha = recipe.mixup if kind == "mixup" else recipe.cutmix
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    order = torch.randperm(len(images)).to(images.device)
    if kind == "mixup":
        images = share * images + (1 - share) * images[order]
    else:
        images, share = _paste(images, images[order], share)
    return images, share * targets + (1 - share) * targets[order]


def _paste(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """CutMix's box, clipped at the border; returns the share of the first image that is really left."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    y, x = int(torch.randint(height, ()).item()), int(torch.randint(width, ()).item())
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(0, y - half_h), min(height, y + half_h)
    left, right = max(0, x - half_w), min(width, x + half_w)
    images = images.clone()
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)


# FROM model/training/batches.py:
# Where a training step's batch comes from: views of all images, made for one epoch or kept.

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
