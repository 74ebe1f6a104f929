"""One epoch of training and one pass of validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.cascade import Cascade
from model.errors import TrainingStoppedError
from model.training.augment import mix
from model.training.optim import Optimizers
from model.training.recipes import Recipe
from model.training.teacher import Teacher, exit_loss

CHECK_EVERY = 25
"""Steps between two looks at the loss: each look waits for a GPU to finish its queue."""
ADVICE = "start again with a smaller --set lr"


@dataclass
class Arrays:
    """One split on the training device: pixels uint8 [N, 3, H, W], labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


@dataclass
class Learner:
    """What one training run holds."""

    model: Cascade
    average: Cascade | None
    step_model: nn.Module
    optimizers: Optimizers
    augment: nn.Module
    normalize: Callable[[Tensor], Tensor]
    recipe: Recipe
    device: torch.device
    teacher: Teacher | None = None

    @property
    def final(self) -> Cascade:
        """The weights that training is for: the average where one is kept."""
        return self.model if self.average is None else self.average

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, plain fp32 on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in an epoch; a set smaller than one batch is one batch."""
    return max(1, images // batch_size)


def train_epoch(learner: Learner, data: Arrays, epoch: int, tick: Callable[[int, float], None]) -> tuple[float, float]:
    """Train one epoch (0-based `epoch`) → mean loss, images per second.

    `tick(images, loss)` is called every CHECK_EVERY steps. The last, incomplete batch is left out: all batches have
    one shape, and another shuffle takes up its images.

    Raises:
        TrainingStoppedError: the loss is not finite.
    """
    recipe, images = learner.recipe, len(data.labels)
    batch = min(recipe.batch_size, images)
    steps = steps_per_epoch(images, recipe.batch_size)
    order = torch.randperm(images).to(learner.device)
    learner.model.train()
    losses: list[Tensor] = []
    checked, start = 0, time.perf_counter()
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        losses.append(_train_step(learner, data.pixels[chosen], data.labels[chosen], epoch * steps + step))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            recent = torch.stack(losses[checked:]).mean().item()
            tick((step + 1 - checked) * batch, recent)
            checked = step + 1
            if not recent < float("inf"):
                raise TrainingStoppedError(f"the loss became {recent} in epoch {epoch + 1}, step {step + 1}; {ADVICE}")
    return torch.stack(losses).mean().item(), steps * batch / (time.perf_counter() - start)


def _train_step(learner: Learner, pixels: Tensor, labels: Tensor, step: int) -> Tensor:
    recipe = learner.recipe
    images = learner.augment(pixels.float() / 255)
    images, targets = mix(recipe, images, labels, learner.model.config.classes)
    with learner.autocast():
        # The teacher sees the very view that its student sees.
        taught = None if learner.teacher is None else learner.teacher.logits(images).float()
        logits = learner.step_model(learner.normalize(images))
        # Equation 1: the exits' losses, summed.
        loss = torch.stack([exit_loss(recipe, z.float(), targets, taught) for z in logits]).sum()
    loss.backward()
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(learner.model.parameters(), recipe.clip_norm)
    learner.optimizers.step(step)
    if learner.average is not None:
        update_average(learner.average, learner.model, recipe.ema, step)
    return loss.detach()


@torch.no_grad()
def update_average(average: Cascade, model: Cascade, decay: float, step: int) -> None:
    """Move the averaged weights towards the present ones. The memory is short at first, else the random start would
    dominate a short run. The step is known here without asking the device, which would wait for its queue."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)


@torch.inference_mode()
def exit_accuracies(learner: Learner, data: Arrays, batch: int = 500) -> list[float]:
    """Share of `data` each exit gets right, with the final weights.

    Raises:
        TrainingStoppedError: an output is not finite; a loss is that of the weights before its step, so only this pass
            sees what the epoch's last step did, before a checkpoint keeps it.
    """
    model = learner.final.eval()
    correct = torch.zeros(len(model.stages), dtype=torch.int64)
    for start in range(0, len(data.labels), batch):
        chosen = slice(start, start + batch)
        with learner.autocast():
            logits = model(learner.normalize(data.pixels[chosen].float() / 255))
        if not all(z.isfinite().all() for z in logits):
            raise TrainingStoppedError(f"the network's outputs are no longer finite; {ADVICE}")
        correct += torch.tensor([(z.argmax(1) == data.labels[chosen]).sum().item() for z in logits])
    return [count / len(data.labels) for count in correct.tolist()]
