"""The optimizers of a recipe, and its learning rate at every step."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from msmlp.model.training.recipes import Recipe


class Optimizers:
    """One or two torch optimizers driven as one, after gradient clipping. The learning rate is a function of the step
    and has no state.

    `capturable`: nothing is read back from the device, as a CUDA graph requires; torch supports this on GPUs only.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, *, capturable: bool = False) -> None:
        self.recipe, self.capturable = recipe, capturable
        self.parameters: list[Tensor] = list(model.parameters())
        self.parts = _build(model, recipe, capturable)
        for part in self.parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]

    @torch.no_grad()
    def step(self, factor: Tensor) -> None:
        """Apply the gradients at `factor` (a scalar) times the peak learning rate."""
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        if self.capturable or factor.is_cuda:  # to read `factor` there is to wait for the device
            self._step_part_of_the_way(factor)
            return
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor.item()
            part.step()

    def _step_part_of_the_way(self, factor: Tensor) -> None:
        # The optimizers' own rate is a Python number, which a CUDA graph could not change. Every optimizer here moves
        # the weights in proportion to its rate, so they step at the peak rate and `factor` of the way is kept.
        moved = [p for p in self.parameters if p.grad is not None]
        before = [p.clone() for p in moved]
        for part in self.parts:
            part.step()
        way = torch._foreach_sub(moved, before)
        torch._foreach_mul_(way, factor)
        torch._foreach_copy_(moved, torch._foreach_add(before, way))

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Restore the state, but keep the options given here."""
        for part, state in zip(self.parts, states, strict=True):
            options = [{key: group[key] for key in group if key != "params"} for group in part.param_groups]
            part.load_state_dict(state)
            for group, ours in zip(part.param_groups, options, strict=True):
                group.update(ours)  # not the options of the device or version that wrote the checkpoint


def _build(model: nn.Module, recipe: Recipe, capturable: bool) -> list[torch.optim.Optimizer]:
    heads = {id(p) for name, p in model.named_parameters() if {"head", "predict"} & set(name.split("."))}

    def groups(*wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Each group, split into heads and the rest if their rates differ."""
        return list(_split(wanted, heads, recipe)) if recipe.backbone_lr != 1 else list(wanted)

    if recipe.optimizer == "sgd":
        options = recipe.model_dump(include={"lr", "momentum", "weight_decay", "nesterov"})
        if recipe.bias_lr == 1:
            return [torch.optim.SGD(groups({"params": list(model.parameters())}), fused=True, **options)]
        biases = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
        rest = [p for p in model.parameters() if not any(p is bias for bias in biases)]
        # Their decay per step stays that of the others.
        faster = {"lr": recipe.lr * recipe.bias_lr, "weight_decay": recipe.weight_decay / recipe.bias_lr}
        return [torch.optim.SGD(groups({"params": rest}, {"params": biases, **faster}), fused=True, **options)]
    # As is customary with AdamW, norms and biases do not decay.
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]

    def adamw(decayed: list[nn.Parameter]) -> torch.optim.Optimizer:
        options: dict[str, Any] = {"weight_decay": recipe.weight_decay, "capturable": capturable, "fused": True}
        both = groups({"params": decayed}, {"params": vectors, "weight_decay": 0.0})
        return torch.optim.AdamW(both, recipe.lr, **options)

    if recipe.optimizer == "adamw":
        return [adamw(matrices)]
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and ".blocks." in name]
    rest = [p for p in matrices if not any(p is h for h in hidden)]
    return [
        torch.optim.Muon(
            hidden, recipe.lr * recipe.backbone_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        adamw(rest),
    ]


def _split(groups: Iterable[dict[str, Any]], heads: set[int], recipe: Recipe) -> Iterator[dict[str, Any]]:
    for group in groups:
        rate = group.get("lr", recipe.lr)
        for chosen, lr in ((True, rate), (False, rate * recipe.backbone_lr)):
            parameters = [p for p in group["params"] if (id(p) in heads) == chosen]
            if parameters:
                yield group | {"params": parameters, "lr": lr}


def lr_factor(recipe: Recipe, epoch: float) -> float:
    """The learning rate at the fractional epoch `epoch`, as a share of its peak."""
    stable = recipe.schedule == "wsd"
    warmup = recipe.warmup_epochs if stable else min(recipe.warmup_epochs, recipe.epochs / 5)
    if epoch < warmup:
        return (epoch + 1e-3) / warmup
    if stable:
        begins = recipe.decay_begins
        # 1 - sqrt decays best of those compared by Hägele et al. ("Scaling laws and compute-optimal training beyond
        # fixed training durations", 2024).
        return 1 - math.sqrt(min(1.0, max(0.0, epoch - begins) / (recipe.epochs - begins)))
    if recipe.schedule == "step":
        edges = [0.0, *(share * recipe.epochs for share in recipe.milestones), math.inf]
        return next(0.1**i for i, (a, b) in enumerate(pairwise(edges)) if a <= epoch < b)
    progress = (epoch - warmup) / max(1e-9, recipe.epochs - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) + 1e-3
