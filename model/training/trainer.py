"""`msmlp train`: data and a preset in, a weights folder out."""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from model.backends.devices import pick_device
from model.calibration.calibrate import calibrate_on
from model.cascade import Cascade
from model.config import CascadeConfig, override, preset
from model.datasets import Dataset, Split, load_dataset
from model.datasets.dataset import split_digest
from model.errors import ConfigError, OptionError, TrainingStoppedError
from model.preprocess import Preprocess
from model.training.augment import augmentation, normalizer
from model.training.checkpoint import FILE as CHECKPOINT
from model.training.checkpoint import load_checkpoint, save_checkpoint
from model.training.journal import Journal, plot_curves
from model.training.loop import Arrays, Learner, exit_accuracies, steps_per_epoch, train_epoch
from model.training.optim import Optimizers
from model.training.provenance import command_line, device_name, git_commit
from model.training.recipes import Recipe, recipe
from model.training.teacher import Teacher, load_teacher
from model.weights import load_weights, write_weights


@dataclass(frozen=True)
class TrainOptions:
    """The command line of `msmlp train`, checked by the recipe's and the cascade's own rules."""

    data: Path
    preset: str
    out: Path
    recipe: str = "best"
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    teacher: Path | None = None
    resume: bool = False
    limit_per_class: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)


def train(options: TrainOptions) -> Path:
    """Train (or resume) and leave a weights folder in `options.out` → that folder.

    Raises:
        CallerError: options, data or a checkpoint that do not fit.
        TrainingStoppedError: NaN or an interrupt; `--resume` goes on from the last whole epoch.
    """
    cascade, plan = configure(options)
    device = pick_device(options.device)
    teacher = load_teacher(options.teacher, device) if options.teacher is not None else None
    dataset = load_dataset(options.data, cascade.image_size)
    cascade = override(cascade, {"classes": len(dataset.classes)})
    training, validation = dataset.train_and_validation(options.seed)
    digest = split_digest(validation)
    if teacher is not None:
        teacher.check(dataset.classes, cascade.image_size, digest)
    if options.limit_per_class is not None:
        training = training.limited(options.limit_per_class)
    preprocess = _statistics(training, cascade.image_size)

    _make_folder(options.out)
    torch.manual_seed(options.seed)
    learner = _learner(cascade, plan, preprocess, len(training), device, teacher)
    setup = _setup(options, learner, digest, len(training))
    if not options.resume and (options.out / CHECKPOINT).exists():
        raise OptionError("out", f"{options.out} holds a run already: go on with --resume, or choose another folder")
    done = load_checkpoint(options.out, learner, setup) if options.resume else 0
    rows = _run(options, learner, training, validation, done, setup)
    plot_curves(rows, options.out / "curves.png")
    write_weights(
        options.out,
        config=cascade,
        state=learner.final.state_dict(),
        classes=dataset.classes,
        preprocess=preprocess,
        training=_training_record(options, learner, dataset, training, validation, rows),
        results=_results(learner, dataset, validation, rows),
    )
    # The frontier comes with the weights, so that what training leaves can be served.
    calibrate_on(load_weights(options.out), validation, options.device)
    return options.out


def configure(options: TrainOptions) -> tuple[CascadeConfig, Recipe]:
    """The cascade and the recipe that the options describe; each `--set` key belongs to one of the two."""
    cascade, plan = preset(options.preset), recipe(options.recipe)
    named = {"epochs": options.epochs, "batch_size": options.batch_size}
    changes = {**{k: v for k, v in named.items() if v is not None}, **options.changes}
    if "classes" in changes:
        raise ConfigError("classes: is taken from the data")
    ours = {k: v for k, v in changes.items() if k.split(".")[0] in CascadeConfig.model_fields}
    rest = {k: v for k, v in changes.items() if k not in ours}
    unknown = [k for k in rest if k not in Recipe.model_fields]
    if unknown:
        fields = sorted({*Recipe.model_fields, *CascadeConfig.model_fields} - {"classes"})
        raise ConfigError(f"--set: no field is called {unknown[0]!r}; there are {', '.join(fields)}")
    return override(cascade, ours), override(plan, rest)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", f"{path} cannot be made a folder ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise OptionError("out", f"{path} cannot be written to")


def _learner(
    cascade: CascadeConfig,
    plan: Recipe,
    preprocess: Preprocess,
    images: int,
    device: torch.device,
    teacher: Teacher | None,
) -> Learner:
    model = Cascade(cascade).to(device)
    return Learner(
        model=model,
        average=copy.deepcopy(model).requires_grad_(False) if plan.ema else None,
        # Compiling pays on a GPU; on a CPU it was measured to give nothing.
        step_model=cast(nn.Module, torch.compile(model)) if device.type == "cuda" else model,
        optimizers=Optimizers(model, plan, steps_per_epoch(images, plan.batch_size)),
        augment=augmentation(plan, cascade.image_size),
        normalize=normalizer(preprocess, device),
        recipe=plan,
        device=device,
        teacher=teacher,
    )


def _run(
    options: TrainOptions, learner: Learner, training: Split, validation: Split, done: int, setup: dict[str, Any]
) -> list[dict[str, Any]]:
    train_arrays, val_arrays = _arrays(training, learner.device), _arrays(validation, learner.device)
    epochs = learner.recipe.epochs
    batch = min(learner.recipe.batch_size, len(training))
    journal = Journal(options.out, steps_per_epoch(len(training), batch) * batch, epochs, done)
    safe = done
    try:
        for epoch in range(done, epochs):
            # Seeded anew each epoch: a resumed run draws what an uninterrupted one would have drawn.
            torch.manual_seed(options.seed * 1_000_003 + epoch)
            loss, speed = train_epoch(learner, train_arrays, epoch, journal.tick)
            accuracies = exit_accuracies(learner, val_arrays)
            journal.epoch({"epoch": epoch + 1, "loss": loss, "val_accuracy": accuracies, "images_per_second": speed})
            save_checkpoint(options.out, learner, epoch + 1, setup)
            safe = epoch + 1
    except KeyboardInterrupt:
        raise TrainingStoppedError(
            f"interrupted; {safe} of {epochs} epochs are safe in {options.out}: go on with --resume"
        ) from None
    finally:
        journal.close()
    return journal.rows


def _arrays(split: Split, device: torch.device) -> Arrays:
    pixels = torch.from_numpy(np.ascontiguousarray(split.pixels.transpose(0, 3, 1, 2)))
    return Arrays(pixels.to(device), torch.from_numpy(split.labels).to(device))


def _statistics(training: Split, size: int) -> Preprocess:
    # From counts of the 256 values: exact, and without a second copy of the data.
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(training.pixels[..., c].ravel(), minlength=256) for c in range(3)])
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(axis=1) - mean**2, 1e-6))
    return Preprocess(size=size, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _setup(options: TrainOptions, learner: Learner, digest: str, images: int) -> dict[str, Any]:
    teacher, plan = learner.teacher, learner.recipe
    # Without a teacher these say nothing, and a run begun before they existed can go on.
    unused = {"distill_weight", "distill_temperature"} if teacher is None else set()
    return {
        "cascade": learner.model.config.model_dump_json(),
        "recipe": plan.model_dump_json(exclude=unused),
        "teacher": teacher.sha256 if teacher is not None else None,
        "seed": options.seed,
        "validation digest": digest,
        "number of training images": images,
    }


def _training_record(
    options: TrainOptions,
    learner: Learner,
    dataset: Dataset,
    training: Split,
    validation: Split,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the manifest says of the training: enough to do it again."""
    recipe, teacher = learner.recipe, learner.teacher
    return {
        "data": dataset.source,
        "images": len(training),
        "validation": {"seed": options.seed, "images": len(validation), "digest": split_digest(validation)},
        "recipe_name": options.recipe,
        "recipe": recipe.model_dump(mode="json"),
        "preset": options.preset,
        "teacher": {"name": teacher.name, "sha256": teacher.sha256} if teacher is not None else None,
        "seed": options.seed,
        "epochs": recipe.epochs,
        "device": device_name(learner.device),
        "torch": torch.__version__,
        "command": command_line(),
        "git_commit": git_commit(),
        "images_per_second": float(np.median([row["images_per_second"] for row in rows])) if rows else None,
    }


def _results(learner: Learner, dataset: Dataset, validation: Split, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    accuracies = rows[-1]["val_accuracy"] if rows else exit_accuracies(learner, _arrays(validation, learner.device))
    return [
        {"exit": k, "split": "val", "images": len(validation), "accuracy": accuracy}
        for k, accuracy in enumerate(accuracies, 1)
    ]
