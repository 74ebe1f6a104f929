"""What a batch loses: against its labels, its teacher and its own last exit."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
