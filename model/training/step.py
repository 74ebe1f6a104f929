"""One training step on the device: a batch in, moved weights out.

Nothing here waits for the device, and whatever changes from step to step is a tensor: so one CUDA graph can hold the
whole step, network, losses, clipping, optimizers and average (capture.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.batches import Batch
from msmlp.model.training.capture import Function, plainly
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.losses import Imitator, cascade_loss, imitation_loss
from msmlp.model.training.optim import Optimizers
from msmlp.model.training.recipes import Recipe


class Objective(nn.Module):
    """What a batch loses: normalisation, network and losses as one module, so that they compile as one."""

    def __init__(
        self,
        model: Cascade | ConvNet,
        recipe: Recipe,
        normalize: Callable[[Tensor], Tensor],
        imitator: Imitator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.normalize, self.imitator, self.dtype = model, recipe, normalize, imitator, dtype

    def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
        """A batch's tensors, floats in float32 → the loss, a scalar; products in `dtype`, losses in float32."""
        batch = Batch.of(tensors)
        predicted: Tensor | None = None
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            images = self.normalize(batch.pixels.float() / 255)
            if imitates and self.imitator is not None:
                logits, predicted = self.imitator(images)
            else:
                logits = self.model(images)
        lesson = batch.lesson
        taught = None if lesson is None else lesson.logits
        loss = cascade_loss(self.recipe, [z.float() for z in logits], batch.targets, taught)
        if predicted is not None and lesson is not None:
            loss = loss + self.recipe.imitation * imitation_loss(predicted, lesson.features)
        return loss


class TrainStep:
    """Loss, gradients, clipping, optimizers, average; `captured` makes the whole of it cheap to start again."""

    def __init__(
        self,
        objective: nn.Module,
        optimizers: Optimizers,
        recipe: Recipe,
        model: nn.Module,
        average: nn.Module | None = None,
        captured: Callable[[Function], Function] = plainly,
    ) -> None:
        self.objective, self.optimizers, self.recipe = objective, optimizers, recipe
        self.model, self.average = model, average
        # A graph holds one course of things: with imitation is another than without.
        self._run = {imitates: captured(self._with(imitates)) for imitates in (False, True)}

    def __call__(self, batch: Batch, numbers: Tensor, *, imitates: bool) -> Tensor:
        """Take one step; `numbers` are a row of `numbers_of` → the loss before it, a scalar on the device."""
        return self._run[imitates]([numbers, *batch.tensors()])

    def numbers_of(self, first: int, count: int, device: torch.device) -> Tensor:
        """What differs in the steps `first`, `first + 1`, ... (0-based): the factor of the learning rate and the share
        that the average moves, [count, 2]."""
        steps = range(first, first + count)
        rows = [(self.optimizers.factor(step), average_share(self.recipe.ema, step)) for step in steps]
        return torch.tensor(rows).to(device)

    def _with(self, imitates: bool) -> Function:
        def run(tensors: list[Tensor]) -> Tensor:
            factor, share = tensors[0].unbind()
            # Views are kept in half precision; a loss is computed in float32.
            batch = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors[1:]]
            self.optimizers.zero_grad()
            loss: Tensor = self.objective(batch, imitates)
            loss.backward()
            self.optimizers.step(factor)
            if self.average is not None:
                update_average(self.average, self.model, share)
            return loss.detach()

        return run


def average_share(decay: float, step: int) -> float:
    """How far the averaged weights move at step `step`. The memory is short at first, else the random start would
    dominate a short run."""
    return 1 - min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, share: Tensor) -> None:
    """Move the averaged weights by `share` (a scalar) of the way to the present ones."""
    pairs = list(zip(average.buffers(), model.buffers(), strict=True))
    # The statistics of batch norms are averages already: moved along too. Counters are copied.
    floats = [(a, m) for a, m in pairs if a.is_floating_point()]
    ours = [*average.parameters(), *(a for a, _ in floats)]
    theirs = [*model.parameters(), *(m for _, m in floats)]
    way = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(way, share)
    torch._foreach_add_(ours, way)
    for a, m in pairs:
        if not a.is_floating_point():
            a.copy_(m)
