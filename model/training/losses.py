"""What a batch loses: against its labels, its teacher and its own last exit."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.recipes import Recipe


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch: logits [n, classes] and its last feature map, pooled to [n, C, G, G]."""

    logits: Tensor
    features: Tensor

    def half(self) -> "Lesson":
        """In half precision, which is enough to keep it."""
        return Lesson(self.logits.half(), self.features.half())


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence of two sets of logits [n, classes] at temperature τ, times τ², which keeps its
    gradients as large as at τ = 1 (Hinton et al., 2015)."""
    ours, theirs = (F.log_softmax(z / temperature, dim=1) for z in (logits, wanted))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def exit_loss(recipe: Recipe, logits: Tensor, targets: Tensor, taught: Tensor | None) -> Tensor:
    """What one exit's logits [n, classes] lose against targets [n, classes] and, with one, the teacher's logits; the
    two are mixed by `distill_weight`."""
    plain = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    if taught is None:
        return plain
    share = recipe.distill_weight
    return (1 - share) * plain + share * divergence(logits, taught, recipe.distill_temperature)


def cascade_loss(recipe: Recipe, logits: list[Tensor], targets: Tensor, taught: Tensor | None) -> Tensor:
    """Equation 1, the exits' losses summed, weighted where the recipe says so; earlier exits also learn the last.

    Args:
        recipe: `exit_weights`, `last_weight` and what one exit's loss reads.
        logits: K x [n, classes], float32.
        targets: [n, classes].
        taught: the teacher's logits [n, classes], or None.
    """
    weights = recipe.exit_weights or (1.0,) * len(logits)
    losses = [exit_loss(recipe, z, targets, taught) for z in logits]
    if recipe.last_weight:
        last = logits[-1].detach()  # what the last exit says is taught, not changed
        for k, z in enumerate(logits[:-1]):
            losses[k] = losses[k] + recipe.last_weight * divergence(z, last, recipe.distill_temperature)
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


# FROM model/training/losses.py:
# Feature imitation: early in a run, the last stage's tokens also learn to predict the teacher's feature map.

GRID = 2
"""Squares a side that a feature map is pooled to."""


def pooled_map(features: Tensor) -> Tensor:
    """A feature map [n, C, h, w] → [n, C, GRID, GRID]."""
    return F.adaptive_avg_pool2d(features, (GRID, GRID))


def token_map(tokens: Tensor) -> Tensor:
    """Tokens [n, S, C] of a square grid → the map [n, C, √S, √S]."""
    side = round(tokens.shape[1] ** 0.5)
    grid: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
    return grid


def squares_of(features: Tensor) -> Tensor:
    """A map [n, C, G, G] → its squares [n, G², C], laid out one after the other."""
    return features.flatten(2).transpose(1, 2).contiguous()


class Imitator(nn.Module):
    """A cascade with the layer that predicts the teacher's features; the loss is in units of their variance."""

    def __init__(self, model: Cascade, teacher_width: int) -> None:
        super().__init__()
        self.model = model
        self.predict = nn.Linear(model.config.stages[-1].width, teacher_width)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Normalised images [n, 3, H, W] → logits of every exit, predicted features [n, GRID², C_teacher]."""
        features, logits = self.model.outputs(images)
        return logits, cast(Tensor, self.predict(squares_of(pooled_map(token_map(features[-1])))))


def imitation_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of predicted [n, G², C] against features [n, C, G, G] that are standardised over their
    channels: their scale says nothing."""
    wanted = squares_of(wanted.float())
    centred = wanted - wanted.mean(2, keepdim=True)
    scale = torch.sqrt(centred.square().mean(2, keepdim=True) + 1e-6)
    return F.mse_loss(predicted.float(), centred / scale)
