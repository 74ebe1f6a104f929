"""What a run trains: the learner, its epochs and its validation pass."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msmlp.model.errors import TrainingStoppedError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.augment import augmentation
from msmlp.model.training.batches import Arrays, Batches
from msmlp.model.training.capture import Function
from msmlp.model.training.convnet import ConvNet, Whitening
from msmlp.model.training.losses import FeaturePredictor
from msmlp.model.training.optim import Optimizers
from msmlp.model.training.pretrained import InitialWeights, Teacher
from msmlp.model.training.recipes import Recipe
from msmlp.model.training.step import CompiledObjective, Objective, step_scalars, train_step

CHECK_EVERY = 25
"""Steps between two reads of the loss, each of which waits for a GPU to finish its queue."""
ADVICE = "start again with a smaller --set lr"


Check = Callable[[], None]


def nothing() -> None:
    """A check that never raises."""


@dataclass
class Learner:
    model: Cascade | ConvNet
    recipe: Recipe
    normalize: Callable[[Tensor], Tensor]
    teacher: Teacher | None = None
    dtype: torch.dtype = torch.float32
    compiles: bool = False
    capture: Callable[[Function], Function] | None = None
    """Makes a step cheap to launch."""
    initial: InitialWeights | None = None
    seed: int = 0
    commit: str | None = None
    """The code's commit when the run began; a resumed run keeps it."""

    def __post_init__(self) -> None:
        recipe, config, teacher = self.recipe, self.model.config, self.teacher
        self.device = next(self.model.parameters()).device
        self.average = deepcopy(self.model).requires_grad_(False) if recipe.ema else None
        self.predictor: FeaturePredictor | None = None
        if recipe.imitation and teacher is not None and isinstance(self.model, Cascade):
            self.predictor = FeaturePredictor(self.model, teacher.width).to(self.device)
        self.optimizers = Optimizers(self.predictor or self.model, recipe, capturable=self.capture is not None)
        targets = None if teacher is None else teacher.targets
        self.batches = Batches(recipe, augmentation(recipe, config.image_size), config.classes, targets, self.seed)
        self.objective = Objective(self.model, recipe, self.normalize, self.predictor, self.dtype)
        objective: nn.Module = CompiledObjective(self.objective) if self.compiles else self.objective
        steps = {
            features: train_step(objective, self.optimizers, self.model, self.average, features=features)
            for features in (False, True)
        }
        self.steps = {features: self.capture(step) if self.capture else step for features, step in steps.items()}

    @property
    def final(self) -> Cascade | ConvNet:
        """The weights that the run leaves: the average if there is one."""
        return self.model if self.average is None else self.average

    def fit_whitening(self, data: Arrays) -> None:
        """Set a teacher's first layer from the first 5,000 training images, where it is one that whitens."""
        for model in (self.model, self.average):
            if model is not None and isinstance(model.stem, Whitening):
                model.stem.fit(self.normalize(data.pixels[:5000].float() / 255))

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(tensor.isfinite().all() for tensor in self.model.state_dict().values())


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in an epoch; a set smaller than one batch is one batch."""
    return max(1, images // batch_size)


def train_epoch(
    learner: Learner,
    data: Arrays,
    epoch: int,
    tick: Callable[[int, float], None],
    *,
    losses: list[Tensor] | None = None,
    check: Check = nothing,
) -> tuple[float, float]:
    """Train one epoch (0-based `epoch`) → mean loss, images per second; TrainingStoppedError if the loss is not finite.

    `tick(images, loss)` is called every CHECK_EVERY steps. The last, incomplete batch is left out: all batches have the
    same shape, and the next epoch's shuffle includes its images. `losses` are those of the steps that an earlier
    process has done, which are left out; it grows with every step. `check` is called after each, and may raise.
    """
    # Seeded every epoch, so that a resumed run draws what an uninterrupted one would have drawn.
    torch.manual_seed((learner.seed * 1_000_003 + epoch) % 2**63)
    recipe, images = learner.recipe, len(data.labels)
    batch = min(recipe.batch_size, images)
    steps = steps_per_epoch(images, recipe.batch_size)
    order = torch.randperm(images).to(learner.device)
    losses = [] if losses is None else losses
    first = checked = len(losses)
    start = time.perf_counter()
    learner.model.train()
    views = learner.batches.of_epoch(data, epoch, check) if first < steps else []
    scalars = step_scalars(recipe, epoch, steps).to(learner.device)
    take_step = learner.steps[recipe.distills_features(epoch)]
    for step in range(first, steps):
        chosen = order[step * batch : (step + 1) * batch]
        losses.append(take_step([scalars[step], *(view[chosen] for view in views)]))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            recent = torch.stack(losses[checked:]).mean().item()
            tick((step + 1 - checked) * batch, recent)
            checked = step + 1
            if not recent < float("inf"):
                raise TrainingStoppedError(f"the loss became {recent} in epoch {epoch + 1}, step {step + 1}; {ADVICE}")
        check()
    seconds = time.perf_counter() - start
    return torch.stack(losses).mean().item(), max(1, steps - first) * batch / seconds


@torch.inference_mode()
def exit_accuracies(learner: Learner, data: Arrays, batch: int = 500, check: Check = nothing) -> list[float]:
    """The accuracy of each exit on `data`, with the final weights; TrainingStoppedError if an output is not finite.

    `check` is called after every `batch` images, and may raise.

    A step's loss is that of the weights before it, so only this pass checks an epoch's last step before a checkpoint
    keeps it.
    """
    model = learner.final.eval()
    counts: list[list[float]] = []
    for start in range(0, len(data.labels), batch):
        chosen = slice(start, start + batch)
        with torch.autocast(learner.device.type, torch.bfloat16, enabled=learner.dtype == torch.bfloat16):
            logits = model(learner.normalize(data.pixels[chosen].float() / 255))
        if not all(z.isfinite().all() for z in logits):
            raise TrainingStoppedError(f"the network's outputs are no longer finite; {ADVICE}")
        counts.append([(z.argmax(1) == data.labels[chosen]).sum().item() for z in logits])
        check()
    return [sum(exit) / len(data.labels) for exit in zip(*counts, strict=True)]
