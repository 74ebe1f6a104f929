"""One epoch of training and one pass of validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.cascade import Cascade
from model.errors import TrainingStoppedError
from model.training.batches import Arrays, Batch, Batches
from model.training.convnet import ConvNet
from model.training.imitation import imitation_loss
from model.training.losses import cascade_loss
from model.training.optim import Optimizers
from model.training.recipes import Recipe
from model.training.teacher import Teacher

CHECK_EVERY = 25
"""Steps between two looks at the loss: each look waits for a GPU to finish its queue."""
ADVICE = "start again with a smaller --set lr"


@dataclass
class Learner:
    """What one training run holds."""

    model: Cascade | ConvNet
    average: Cascade | ConvNet | None
    step_model: nn.Module
    optimizers: Optimizers
    augment: nn.Module
    normalize: Callable[[Tensor], Tensor]
    recipe: Recipe
    device: torch.device
    teacher: Teacher | None = None
    imitator: nn.Module | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0
    commit: str | None = None
    """Of the code that the run began with; a resumed run keeps it."""

    def __post_init__(self) -> None:
        teach = None if self.teacher is None else self.teacher.teach
        self.batches = Batches(self.recipe, self.augment, self.model.config.classes, teach, self.seed)

    @property
    def final(self) -> Cascade | ConvNet:
        """The weights that training is for: the average where one is kept."""
        return self.model if self.average is None else self.average

    def autocast(self) -> torch.autocast:
        """Products in bf16 where that is the dtype."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


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
    batch_of = learner.batches.of_epoch(data, epoch)
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        loss = _loss(learner, batch_of(chosen), imitates=recipe.imitates(epoch))
        _update(learner, loss, epoch * steps + step)
        losses.append(loss.detach())
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            recent = torch.stack(losses[checked:]).mean().item()
            tick((step + 1 - checked) * batch, recent)
            checked = step + 1
            if not recent < float("inf"):
                raise TrainingStoppedError(f"the loss became {recent} in epoch {epoch + 1}, step {step + 1}; {ADVICE}")
    return torch.stack(losses).mean().item(), steps * batch / (time.perf_counter() - start)


def _loss(learner: Learner, batch: Batch, *, imitates: bool) -> Tensor:
    lesson = batch.lesson
    with learner.autocast():
        images = learner.normalize(batch.images)
        predicted: Tensor | None = None
        if imitates and learner.imitator is not None:
            logits, predicted = learner.imitator(images)
        else:
            logits = learner.step_model(images)
    taught = None if lesson is None else lesson.logits
    loss = cascade_loss(learner.recipe, [z.float() for z in logits], batch.targets, taught)
    if predicted is not None and lesson is not None:
        loss = loss + learner.recipe.imitation * imitation_loss(predicted, lesson.features)
    return loss


def _update(learner: Learner, loss: Tensor, step: int) -> None:
    recipe = learner.recipe
    loss.backward()
    if recipe.clip_norm:
        # The imitator holds the model.
        nn.utils.clip_grad_norm_((learner.imitator or learner.model).parameters(), recipe.clip_norm)
    learner.optimizers.step(step)
    if learner.average is not None:
        update_average(learner.average, learner.model, recipe.ema, step)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the present ones. The memory is short at first, else the random start would
    dominate a short run. The step is known here without asking the device, which would wait for its queue."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    pairs = list(zip(average.buffers(), model.buffers(), strict=True))
    # The statistics of batch norms are averages already: moved along too. Counters are copied.
    floats = [(a, m) for a, m in pairs if a.is_floating_point()]
    if floats:
        torch._foreach_lerp_([a for a, _ in floats], [m for _, m in floats], share)
    for a, m in pairs:
        if not a.is_floating_point():
            a.copy_(m)


@torch.inference_mode()
def exit_accuracies(learner: Learner, data: Arrays, batch: int = 500) -> list[float]:
    """Share of `data` each exit gets right, with the final weights.

    Raises:
        TrainingStoppedError: an output is not finite; a loss is that of the weights before its step, so only this pass
            sees what the epoch's last step did, before a checkpoint keeps it.
    """
    model = learner.final.eval()
    counts: list[list[float]] = []
    for start in range(0, len(data.labels), batch):
        chosen = slice(start, start + batch)
        with learner.autocast():
            logits = model(learner.normalize(data.pixels[chosen].float() / 255))
        if not all(z.isfinite().all() for z in logits):
            raise TrainingStoppedError(f"the network's outputs are no longer finite; {ADVICE}")
        counts.append([(z.argmax(1) == data.labels[chosen]).sum().item() for z in logits])
    return [sum(exit) / len(data.labels) for exit in zip(*counts, strict=True)]
