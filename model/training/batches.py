"""The views a run trains on: images augmented and mixed on the training device, with the teacher's targets for them.

Every random draw comes from torch's generator, so seeding it repeats an epoch exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.preprocess import Preprocess
from msmlp.model.training.losses import TeacherTargets
from msmlp.model.training.recipes import Recipe

PIECE = 512 * 32 * 32
"""Pixels that are augmented, and shown to the teacher, at a time: few enough for a CPU's caches."""
GPU_PIECE = 8 * PIECE
VIEW_SEED = 500_009
"""Offset of the views' seed: without it, seed 0 would make the views in the order in which an epoch trains on them."""


Views = list[Tensor]
"""Views of n images: pixels uint8 [n, 3, H, W], targets [n, classes] and the teacher's targets, if there is a teacher;
targets are in half precision."""


@dataclass(frozen=True)
class Arrays:
    """One split on the training device: pixels uint8 [N, 3, H, W], labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


@dataclass
class Batches:
    """Makes a view of every image, for one epoch or for the recipe's `epochs_per_view`: every second of them gets the
    mirror images, if the recipe mirrors at all."""

    recipe: Recipe
    augment: nn.Module
    classes: int
    teacher: Callable[[Tensor], TeacherTargets] | None
    seed: int

    def __post_init__(self) -> None:
        self._number = -1
        self._kept: Views = []

    def of_epoch(self, data: Arrays, epoch: int, check: Callable[[], None] = lambda: None) -> Views:
        """`check` is called between pieces, and may raise."""
        number, use = divmod(epoch, self.recipe.epochs_per_view)
        if number != self._number:
            self._number, self._kept = -1, []  # there may be no room for two
            self._kept, self._number = self._make(data, number, check), number
        # Class and teacher hold for the mirror image too; pixels and the teacher's map, [n, C, h, w], turn with it.
        turns = use % 2 == 1 and self.recipe.augment != "none"
        return [view.flip(3) if view.dim() == 4 else view for view in self._kept] if turns else self._kept

    @torch.no_grad()
    def _make(self, data: Arrays, number: int, check: Callable[[], None]) -> Views:
        # Each set has its own seed, so a resumed run makes the same views whenever it first needs them.
        images, size = len(data.labels), self.recipe.batch_size
        piece = PIECE if data.pixels.device.type == "cpu" else GPU_PIECE
        in_piece = max(1, piece // data.pixels[0, 0].numel() // size) * size
        made: Views = []
        with torch.random.fork_rng():
            mirrored = self._mirrored(images, number).to(data.pixels.device)
            torch.manual_seed((self.seed * 1_000_033 + VIEW_SEED + number) % 2**63)
            for rows in torch.randperm(images).to(data.pixels.device).split(in_piece):
                pixels = torch.where(mirrored[rows, None, None, None], data.pixels[rows].flip(3), data.pixels[rows])
                views = self._make_piece(pixels, data.labels[rows])
                made = made or [view.new_empty(images, *view.shape[1:]) for view in views]
                for kept, view in zip(made, views, strict=True):
                    kept[rows] = view
                check()
        return made

    def _mirrored(self, images: int, number: int) -> Tensor:
        """Which images are mirrored before they are augmented; with alternating flips, the others are next time
        (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024)."""
        if self.recipe.flip == "random" or self.recipe.augment == "none":
            return torch.zeros(images, dtype=torch.bool)
        torch.manual_seed((self.seed * 1_000_033 + VIEW_SEED) % 2**63)  # the same in every epoch
        return (torch.rand(images) < 0.5) ^ bool(number % 2)

    def _make_piece(self, pixels: Tensor, labels: Tensor) -> Views:
        # Images are mixed within a batch.
        augmented = self.augment(pixels.float() / 255).split(self.recipe.batch_size)
        batches = zip(augmented, labels.split(self.recipe.batch_size), strict=True)
        mixed = [mix(self.recipe, images, of, self.classes) for images, of in batches]
        images, targets = (torch.cat(parts) for parts in zip(*mixed, strict=True))
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        # The teacher sees the rounded pixels, as the network will.
        teacher = () if self.teacher is None else self.teacher(pixels.float() / 255)
        return [pixels, *(each.half() for each in (targets, *teacher))]


def normalizer(preprocess: Preprocess, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from images [N, 3, H, W] in [0, 1] to the input of a network trained with `preprocess`."""
    mean = torch.tensor(preprocess.mean, device=device).reshape(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, device=device).reshape(1, 3, 1, 1)
    return lambda images: (images - mean) / std


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
    """CutMix's box, clipped at the border → images, the share of the first image that remains."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    y, x = int(torch.randint(height, ()).item()), int(torch.randint(width, ()).item())
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(0, y - half_h), min(height, y + half_h)
    left, right = max(0, x - half_w), min(width, x + half_w)
    images = images.clone()
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)
