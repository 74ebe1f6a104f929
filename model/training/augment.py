"""Augmentation on the training device, a whole batch at a time (kornia), and mixing of image pairs.

Every random draw comes from torch's generator, so seeding it repeats an epoch exactly.
"""

from collections.abc import Callable

import kornia.augmentation as K
import torch
from kornia.augmentation.auto import TrivialAugment
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.preprocess import Preprocess
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
