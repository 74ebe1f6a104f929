"""What a run trains: the learner, its epochs, its validation pass and its checkpoints."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msmlp.model.errors import DataError, TrainingStoppedError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.augment import augmentation
from msmlp.model.training.batches import Arrays, Batches
from msmlp.model.training.capture import Function
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.losses import FeaturePredictor
from msmlp.model.training.optim import Optimizers
from msmlp.model.training.pretrained import InitialWeights, Teacher
from msmlp.model.training.recipes import ADDED_LATER, Recipe
from msmlp.model.training.step import CompiledObjective, Objective, step_scalars, train_step

CHECKPOINT = "checkpoint.pt"
CHECK_EVERY = 25
"""Steps between two reads of the loss, each of which waits for a GPU to finish its queue."""
ADVICE = "start again with a smaller --set lr"


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
        objective: nn.Module = Objective(self.model, recipe, self.normalize, self.predictor, self.dtype)
        if self.compiles:
            objective = CompiledObjective(objective)
        steps = {
            features: train_step(objective, self.optimizers, self.model, self.average, features=features)
            for features in (False, True)
        }
        self.steps = {features: self.capture(step) if self.capture else step for features, step in steps.items()}

    @property
    def final(self) -> Cascade | ConvNet:
        """The weights that the run leaves: the average if there is one."""
        return self.model if self.average is None else self.average


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in an epoch; a set smaller than one batch is one batch."""
    return max(1, images // batch_size)


def train_epoch(learner: Learner, data: Arrays, epoch: int, tick: Callable[[int, float], None]) -> tuple[float, float]:
    """Train one epoch (0-based `epoch`) → mean loss, images per second; TrainingStoppedError if the loss is not finite.

    `tick(images, loss)` is called every CHECK_EVERY steps. The last, incomplete batch is left out: all batches have the
    same shape, and the next epoch's shuffle includes its images.
    """
    recipe, images = learner.recipe, len(data.labels)
    batch = min(recipe.batch_size, images)
    steps = steps_per_epoch(images, recipe.batch_size)
    order = torch.randperm(images).to(learner.device)
    learner.model.train()
    losses: list[Tensor] = []
    checked, start = 0, time.perf_counter()
    views = learner.batches.of_epoch(data, epoch)
    scalars = step_scalars(recipe, epoch, steps).to(learner.device)
    take_step = learner.steps[recipe.distills_features(epoch)]
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        losses.append(take_step([scalars[step], *(view[chosen] for view in views)]))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            recent = torch.stack(losses[checked:]).mean().item()
            tick((step + 1 - checked) * batch, recent)
            checked = step + 1
            if not recent < float("inf"):
                raise TrainingStoppedError(f"the loss became {recent} in epoch {epoch + 1}, step {step + 1}; {ADVICE}")
    return torch.stack(losses).mean().item(), steps * batch / (time.perf_counter() - start)


@torch.inference_mode()
def exit_accuracies(learner: Learner, data: Arrays, batch: int = 500) -> list[float]:
    """The accuracy of each exit on `data`, with the final weights; TrainingStoppedError if an output is not finite.

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
    return [sum(exit) / len(data.labels) for exit in zip(*counts, strict=True)]


def setup_of(learner: Learner, validation_digest: str, images: int) -> dict[str, Any]:
    teacher, recipe = learner.teacher, learner.recipe
    # Unused fields are left out, so that runs begun before they existed can resume.
    unused = {name for name in ADDED_LATER if getattr(recipe, name) == Recipe.model_fields[name].default}
    unused |= {"distill_weight", "distill_temperature"} if teacher is None else set()
    setup = {
        "cascade": learner.model.config.model_dump_json(),
        "recipe": recipe.model_dump_json(exclude=unused),
        "teacher": teacher.sha256 if teacher is not None else None,
        "init": learner.initial.sha256 if learner.initial is not None else None,
        "seed": learner.seed,
        "validation digest": validation_digest,
        "number of training images": images,
    }
    return setup | ({"dtype": str(learner.dtype)} if learner.dtype != torch.float32 else {})


def save_checkpoint(folder: Path, learner: Learner, epochs_done: int, setup: dict[str, Any]) -> None:
    state = {
        "epochs_done": epochs_done,
        "setup": setup,
        "model": learner.model.state_dict(),
        "average": learner.average.state_dict() if learner.average is not None else None,
        "optimizers": learner.optimizers.state_dict(),
        "git_commit": learner.commit,
        "imitator": learner.predictor.state_dict() if learner.predictor is not None else None,
    }
    partial = folder / (CHECKPOINT + ".partial")
    torch.save(state, partial)
    partial.replace(folder / CHECKPOINT)


def load_checkpoint(folder: Path, learner: Learner, setup: dict[str, Any]) -> int:
    """Restore `learner` → epochs done, 0 without a checkpoint; DataError if it cannot be read or its setup differs."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=learner.device, weights_only=True)
        theirs = state["setup"]
    except Exception as error:  # a damaged zip raises nearly anything
        raise DataError(f"{path} cannot be read ({type(error).__name__}); start again without --resume") from None
    different = [key for key in {**setup, **theirs} if theirs.get(key) != setup.get(key)]
    if different:
        raise DataError(f"{path} is from a run with another {', '.join(different)}; resume with the same options")
    learner.model.load_state_dict(state["model"])
    if learner.average is not None:
        learner.average.load_state_dict(state["average"])
    if learner.predictor is not None:
        learner.predictor.load_state_dict(state["imitator"])
    learner.optimizers.load_state_dict(state["optimizers"])
    learner.commit = state.get("git_commit", learner.commit)
    return int(state["epochs_done"])
