"""Starting a cascade from trained weights instead of from random ones."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from msmlp.model.errors import OptionError, TrainingStoppedError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.training.batches import Arrays, Batches
from msmlp.model.training.capture import on_cuda, plainly
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.losses import Imitator
from msmlp.model.training.optim import Optimizers
from msmlp.model.training.recipes import Recipe
from msmlp.model.training.step import Objective, TrainStep
from msmlp.model.training.teacher import Teacher
from msmlp.model.weights import load_weights


@dataclass(frozen=True)
class Start:
    """Weights to start from, with the name and the sha256 that the manifest and a checkpoint record."""

    name: str
    sha256: str
    cascade: CascadeConfig
    classes: tuple[str, ...]
    validation_digest: str | None
    state: dict[str, torch.Tensor]

    def check(self, classes: tuple[str, ...], validation_digest: str) -> None:
        """Raise OptionError when they know other classes, or may have seen the images that are held out now."""
        if self.classes != classes:
            raise OptionError("init", f"{self.name} knows other classes than the data")
        if self.validation_digest != validation_digest:
            raise OptionError(
                "init",
                f"{self.name} was trained with other validation images, so it may have seen ours; "
                "train both on the same data with the same --seed",
            )

    def into(self, model: Cascade) -> None:
        """Put them into `model`.

        Raises:
            OptionError: they are of another cascade.
        """
        ours, theirs = model.config.model_dump(), self.cascade.model_dump()
        different = sorted(key for key in ours if ours[key] != theirs[key])
        if different:
            raise OptionError("init", f"{self.name} is another cascade: its {', '.join(different)} differ")
        model.load_state_dict(self.state)


def load_start(folder: Path) -> Start:
    """A weights folder as a start.

    Raises:
        WeightsError: damaged, or no weights folder.
    """
    weights = load_weights(folder)
    manifest = weights.manifest
    digest: str | None = manifest.training.get("validation", {}).get("digest")
    state = {name: torch.from_numpy(array) for name, array in weights.state.items()}
    return Start(manifest.name, weights.sha256, manifest.cascade, manifest.classes, digest, state)


# FROM model/training/loop.py:
# A compiled objective, believed when it says what the plain one says.

TOLERANCE = 0.05
"""Relative difference of the two losses that bf16 explains."""

log = logging.getLogger(__name__)


class Compiled(nn.Module):
    """`plain`, compiled; compared on the first batch with and without imitation, and given up where they differ."""

    def __init__(self, plain: nn.Module, compiled: nn.Module | None = None) -> None:
        super().__init__()
        self.plain = plain
        self._fast = cast(nn.Module, torch.compile(plain)) if compiled is None else compiled
        self._checked: set[bool] = set()

    def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
        """See Objective."""
        if imitates not in self._checked:
            self._checked.add(imitates)
            return self._compared(tensors, imitates)
        loss: Tensor = self._fast(tensors, imitates)
        return loss

    def _compared(self, tensors: list[Tensor], imitates: bool) -> Tensor:
        # The statistics of batch norms move once for a batch, whoever looks at it.
        before = {name: buffer.clone() for name, buffer in self.plain.named_buffers()}
        copies = {name: buffer.clone() for name, buffer in before.items()}
        with torch.no_grad():
            expected: Tensor = torch.func.functional_call(self.plain, copies, (tensors, imitates))
        try:
            loss: Tensor = self._fast(tensors, imitates)
        except Exception as error:  # compilers, and those that miss one, raise nearly anything
            what = f"could not be compiled ({type(error).__name__})"
        else:
            if torch.isclose(loss.detach(), expected, rtol=TOLERANCE, atol=TOLERANCE).item():
                return loss
            what = f"compiled, gives a loss of {loss.item():.4g} instead of {expected.item():.4g}"
        log.warning("the training step %s; it goes on uncompiled", what)
        self._fast, self._checked = self.plain, {False, True}
        for name, buffer in self.plain.named_buffers():
            buffer.copy_(before[name])
        again: Tensor = self.plain(tensors, imitates)
        return again


# FROM model/training/loop.py:
# One epoch of training and one pass of validation.

CHECK_EVERY = 25
"""Steps between two looks at the loss: each look waits for a GPU to finish its queue."""
ADVICE = "start again with a smaller --set lr"


@dataclass
class Learner:
    """What one training run holds."""

    model: Cascade | ConvNet
    average: Cascade | ConvNet | None
    optimizers: Optimizers
    augment: nn.Module
    normalize: Callable[[Tensor], Tensor]
    recipe: Recipe
    device: torch.device
    teacher: Teacher | None = None
    imitator: Imitator | None = None
    dtype: torch.dtype = torch.float32
    compiles: bool = False
    start: Start | None = None
    seed: int = 0
    commit: str | None = None
    """Of the code that the run began with; a resumed run keeps it."""

    def __post_init__(self) -> None:
        teach = None if self.teacher is None else self.teacher.teach
        self.batches = Batches(self.recipe, self.augment, self.model.config.classes, teach, self.seed)
        objective: nn.Module = Objective(self.model, self.recipe, self.normalize, self.imitator, self.dtype)
        if self.compiles:
            objective = Compiled(objective)
        captured = on_cuda if self.device.type == "cuda" else plainly
        self.step = TrainStep(objective, self.optimizers, self.recipe, self.model, self.average, captured)

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
    views = learner.batches.of_epoch(data, epoch)
    numbers = learner.step.numbers_of(epoch * steps, steps, learner.device)
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        losses.append(learner.step(views.rows(chosen), numbers[step], imitates=recipe.imitates(epoch)))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            recent = torch.stack(losses[checked:]).mean().item()
            tick((step + 1 - checked) * batch, recent)
            checked = step + 1
            if not recent < float("inf"):
                raise TrainingStoppedError(f"the loss became {recent} in epoch {epoch + 1}, step {step + 1}; {ADVICE}")
    return torch.stack(losses).mean().item(), steps * batch / (time.perf_counter() - start)


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
