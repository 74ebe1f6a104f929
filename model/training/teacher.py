"""Distillation: every exit of a cascade also learns the probabilities of a trained one, the teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cascade import Cascade
from model.errors import OptionError
from model.training.augment import normalizer
from model.training.recipes import Recipe
from model.weights import load_weights


@dataclass(frozen=True)
class Teacher:
    """A trained network, with the name and the sha256 that the manifest and a checkpoint record.

    `logits` maps images [N, 3, H, W] in [0, 1], as the augmentation leaves them, to [N, classes].
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    image_size: int
    validation_digest: str | None
    logits: Callable[[Tensor], Tensor]

    def check(self, classes: tuple[str, ...], image_size: int, validation_digest: str) -> None:
        """Raise OptionError when it cannot teach a cascade of these classes, this image size and these held-out images.

        A teacher that was trained on the validation images would pass on what it knows of them, and the calibration
        would expect too much.
        """
        if self.image_size != image_size:
            raise OptionError("teacher", f"{self.name} sees {self.image_size} pixels, the cascade {image_size}")
        if self.classes != classes:
            odd = sorted(set(self.classes) ^ set(classes))
            raise OptionError(
                "teacher",
                f"{self.name} knows other classes than the data: {', '.join(odd[:5]) or 'the same in another order'}",
            )
        if self.validation_digest != validation_digest:
            raise OptionError(
                "teacher",
                f"{self.name} was trained with other validation images, so it may have seen ours; "
                "train both on the same data with the same --seed",
            )


def load_teacher(folder: Path, device: torch.device) -> Teacher:
    """The last exit of a weights folder; WeightsError for a damaged one."""
    weights = load_weights(folder)
    manifest = weights.manifest
    model = Cascade(manifest.cascade).to(device).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.state.items()})
    normalize = normalizer(manifest.preprocess, device)
    run = cast(nn.Module, torch.compile(model)) if device.type == "cuda" else model

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        last: Tensor = run(normalize(images))[-1]
        return last

    validation = manifest.training.get("validation", {}).get("digest")
    return Teacher(manifest.name, weights.sha256, manifest.classes, manifest.cascade.image_size, validation, logits)


def exit_loss(recipe: Recipe, logits: Tensor, targets: Tensor, taught: Tensor | None) -> Tensor:
    """What one exit's logits [N, classes] lose against targets [N, classes] and, with one, the teacher's logits.

    The two are mixed by `distill_weight`. The teacher's part is the divergence of the distributions at
    `distill_temperature` τ, times τ², which keeps its gradients as large as at τ = 1 (Hinton et al., 2015).
    """
    plain = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    if taught is None:
        return plain
    tau, share = recipe.distill_temperature, recipe.distill_weight
    divergence = F.kl_div(
        F.log_softmax(logits / tau, dim=1), F.log_softmax(taught / tau, dim=1), reduction="batchmean", log_target=True
    )
    return (1 - share) * plain + share * tau**2 * divergence
