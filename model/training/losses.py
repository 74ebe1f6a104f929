"""The loss of a batch: against its labels, the teacher, the cascade's own last exit and the teacher's features."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.recipes import Recipe

GRID = 2
"""Feature maps are pooled to GRID x GRID for distillation."""


class TeacherTargets(NamedTuple):
    """A teacher's outputs for a batch: logits [n, classes] and its last feature map, pooled to [n, C, GRID, GRID]."""

    logits: Tensor
    features: Tensor


def cascade_loss(recipe: Recipe, logits: list[Tensor], targets: Tensor, teacher: Tensor | None) -> Tensor:
    """Equation 1, the sum of the exits' losses, weighted by `exit_weights`; with `last_weight` earlier exits also learn
    from the last. Logits K x [n, classes], targets and the teacher's logits [n, classes], all float32."""
    weights = recipe.exit_weights or (1.0,) * len(logits)
    losses = [exit_loss(recipe, z, targets, teacher) for z in logits]
    if recipe.last_weight:
        last = logits[-1].detach()  # the last exit teaches here and does not learn
        for k, z in enumerate(logits[:-1]):
            losses[k] = losses[k] + recipe.last_weight * divergence(z, last, recipe.distill_temperature)
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def exit_loss(recipe: Recipe, logits: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
    """The loss of one exit's logits [n, classes]: cross entropy, mixed with the divergence from the teacher's logits by
    `distill_weight`."""
    plain = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    if teacher is None:
        return plain
    share = recipe.distill_weight
    return (1 - share) * plain + share * divergence(logits, teacher, recipe.distill_temperature)


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence of two sets of logits [n, classes] at temperature τ, times τ², which keeps its
    gradients as large as at τ = 1 (Hinton et al., 2015)."""
    ours, theirs = (F.log_softmax(z / temperature, dim=1) for z in (logits, wanted))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class FeaturePredictor(nn.Module):
    """A cascade with a linear layer that predicts the teacher's features from the last stage's tokens."""

    def __init__(self, model: Cascade, teacher_width: int) -> None:
        super().__init__()
        self.model = model
        self.predict = nn.Linear(model.config.stages[-1].width, teacher_width)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Normalised images [n, 3, H, W] → logits of every exit, predicted features [n, GRID², C_teacher]."""
        features, logits = self.model.outputs(images)
        return logits, cast(Tensor, self.predict(squares_of(pooled_map(token_map(features[-1])))))


def feature_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of predicted [n, G², C] against features [n, C, G, G], which are standardised over their
    channels because their scale carries no information."""
    wanted = squares_of(wanted.float())
    centred = wanted - wanted.mean(2, keepdim=True)
    scale = torch.sqrt(centred.square().mean(2, keepdim=True) + 1e-6)
    return F.mse_loss(predicted.float(), centred / scale)


def pooled_map(features: Tensor) -> Tensor:
    """A feature map [n, C, h, w] → [n, C, GRID, GRID]."""
    return F.adaptive_avg_pool2d(features, (GRID, GRID))


def token_map(tokens: Tensor) -> Tensor:
    """Tokens [n, S, C] of a square grid → the map [n, C, √S, √S]."""
    side = round(tokens.shape[1] ** 0.5)
    grid: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
    return grid


def squares_of(features: Tensor) -> Tensor:
    """A map [n, C, G, G] → [n, G², C], row by row."""
    return features.flatten(2).transpose(1, 2).contiguous()
