"""One training step: a batch in, updated weights out.

A step never waits for the device, and everything that changes between steps is a tensor, so one CUDA graph can hold all
of it: network, losses, clipping, optimizers and average (capture.py).
"""

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.batches import Views
from msmlp.model.training.capture import Function
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.losses import FeaturePredictor, TeacherTargets, cascade_loss, feature_loss
from msmlp.model.training.optim import Optimizers, lr_factor
from msmlp.model.training.recipes import Recipe

TOLERANCE = 0.05
"""Relative difference between the compiled and the plain loss that bf16 explains."""
SLOPE_TOLERANCE = 0.2
"""The same of all gradients together: the norm of the difference, as a share of theirs."""

log = logging.getLogger(__name__)


def train_step(
    objective: nn.Module, optimizers: Optimizers, model: nn.Module, average: nn.Module | None, *, features: bool
) -> Function:
    """A function that takes one step: a row of `step_scalars` and a batch's tensors → the loss before the step.

    `features`: with feature distillation. A graph holds no branches, so there is one function with and one without.
    """
    # Walking through the modules in every step would take longer than the average itself.
    move = averaging(average, model) if average is not None else None

    def step(tensors: list[Tensor]) -> Tensor:
        factor, share = tensors[0].unbind()
        # Views are kept in half precision; the loss is computed in float32.
        batch = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors[1:]]
        optimizers.zero_grad()
        loss: Tensor = objective(batch, features)
        loss.backward()
        optimizers.step(factor)
        if move is not None:
            move(share)
        return loss.detach()

    return step


def step_scalars(recipe: Recipe, epoch: int, steps: int) -> Tensor:
    """For each of an epoch's steps: the learning rate's factor and the average's update share, [steps, 2]."""
    numbers = range(epoch * steps, (epoch + 1) * steps)
    return torch.tensor([(lr_factor(recipe, n / steps), average_share(recipe.ema, n)) for n in numbers])


class Objective(nn.Module):
    """Normalisation, network and losses in one module, so that they compile as one graph."""

    def __init__(
        self,
        model: Cascade | ConvNet,
        recipe: Recipe,
        normalize: Callable[[Tensor], Tensor],
        predictor: FeaturePredictor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.normalize, self.predictor, self.dtype = model, recipe, normalize, predictor, dtype

    def forward(self, batch: Views, features: bool) -> Tensor:
        """A batch, floats in float32 → the loss, a scalar; the network runs in `dtype`, losses in float32.

        `features`: with feature distillation.
        """
        pixels, targets, *answers = batch
        teacher = TeacherTargets(*answers) if answers else None
        predicted: Tensor | None = None
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            # With the channels last, a patch embedding's output is laid out as tokens.
            images = self.normalize((pixels.float() / 255).contiguous(memory_format=torch.channels_last))
            if features and self.predictor is not None:
                logits, predicted = self.predictor(images)
            else:
                logits = self.model(images)
        loss = cascade_loss(self.recipe, [z.float() for z in logits], targets, teacher.logits if teacher else None)
        if predicted is not None and teacher is not None:
            loss = loss + self.recipe.imitation * feature_loss(predicted, teacher.features)
        return loss


class CompiledObjective(nn.Module):
    """`plain`, compiled. The first batch with and without feature distillation also goes through `plain`, forward and
    backward; if losses or gradients differ, or compiling fails, training continues with `plain`."""

    def __init__(self, plain: nn.Module, compiled: nn.Module | None = None) -> None:
        super().__init__()
        self.plain = plain
        self._fast = cast(nn.Module, torch.compile(plain)) if compiled is None else compiled
        self._checked: set[bool] = set()

    def forward(self, tensors: list[Tensor], features: bool) -> Tensor:
        if features not in self._checked:
            self._checked.add(features)
            problem = self._problem(tensors, features)
            if problem:
                log.warning("the training step %s; continuing without torch.compile", problem)
                self._fast, self._checked = self.plain, {False, True}
        loss: Tensor = self._fast(tensors, features)
        return loss

    def _problem(self, tensors: list[Tensor], features: bool) -> str | None:
        expected, slopes = self._tried(self.plain, tensors, features)
        try:
            found, ours = self._tried(self._fast, tensors, features)
        except Exception as error:  # a compiler, or the lack of one, raises nearly anything
            return f"could not be compiled ({type(error).__name__})"
        if not torch.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE).item():
            return f"has a loss of {found.item():.4g} when compiled, {expected.item():.4g} when not"
        # A comparison with NaN is false.
        difference = ((ours - slopes).norm() / slopes.norm().clamp(min=1e-12)).item()
        return None if difference <= SLOPE_TOLERANCE else f"has other gradients when compiled (by {difference:.1%})"

    def _tried(self, objective: nn.Module, tensors: list[Tensor], features: bool) -> tuple[Tensor, Tensor]:
        """The loss and all gradients in a row; batch norm's statistics stay, as the batch counts once."""
        before = {name: buffer.clone() for name, buffer in self.plain.named_buffers()}
        loss: Tensor = objective(tensors, features)
        learnt = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        slopes = torch.autograd.grad(loss, learnt, allow_unused=True)
        for name, buffer in self.plain.named_buffers():
            buffer.copy_(before[name])
        return loss.detach(), torch.cat([slope.flatten().float() for slope in slopes if slope is not None])


def average_share(decay: float, step: int) -> float:
    """How far step `step` moves the averaged weights: further at first, so that the random start is soon forgotten."""
    return 1 - min(decay, (1 + step) / (10 + step))


def averaging(average: nn.Module, model: nn.Module) -> Callable[[Tensor], None]:
    """A function that moves the averaged weights by a share (a scalar) of the way to the model's."""
    pairs = list(zip(average.buffers(), model.buffers(), strict=True))
    # Batch norm's statistics are averaged too; its counters are copied.
    floats = [(a, m) for a, m in pairs if a.is_floating_point()]
    counters = [(a, m) for a, m in pairs if not a.is_floating_point()]
    ours = [*average.parameters(), *(a for a, _ in floats)]
    theirs = [*model.parameters(), *(m for _, m in floats)]

    @torch.no_grad()
    def move(share: Tensor) -> None:
        way = torch._foreach_sub(theirs, ours)
        torch._foreach_mul_(way, share)
        torch._foreach_add_(ours, way)
        for a, m in counters:
            a.copy_(m)

    return move
