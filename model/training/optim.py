"""Optimizers and the learning rate at every step."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from model.training.recipes import Recipe


class Optimizers:
    """One or two torch optimizers driven as one; the learning rate is a function of the step, so it needs no state."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.parts = _build(model, recipe)

    def step(self, step: int) -> None:
        """Apply the gradients at global step `step` (0-based)."""
        lr = self.recipe.lr * lr_factor(self.recipe, step / self.steps_per_epoch)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        """The state of every part."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """The reverse of `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _build(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    if recipe.optimizer == "sgd":
        return [
            torch.optim.SGD(
                model.parameters(),
                recipe.lr,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.nesterov,
            )
        ]
    # Decay acts on weight matrices; norms and biases are left alone, as is customary with AdamW.
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(_undecayed(matrices, vectors), recipe.lr, weight_decay=recipe.weight_decay)]
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and ".blocks." in name]
    rest = [p for p in matrices if not any(p is h for h in hidden)]
    return [
        torch.optim.Muon(hidden, recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(_undecayed(rest, vectors), recipe.lr, weight_decay=recipe.weight_decay),
    ]


def _undecayed(matrices: list[nn.Parameter], vectors: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def lr_factor(recipe: Recipe, epoch: float) -> float:
    """What the peak learning rate is multiplied by at (fractional) epoch `epoch`."""
    warmup = min(recipe.warmup_epochs, recipe.epochs / 5)
    if epoch < warmup:
        return (epoch + 1e-3) / warmup
    if recipe.schedule == "step":
        edges = [0.0, *(share * recipe.epochs for share in recipe.milestones), math.inf]
        return next(0.1**i for i, (a, b) in enumerate(pairwise(edges)) if a <= epoch < b)
    progress = (epoch - warmup) / max(1e-9, recipe.epochs - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) + 1e-3
