"""What an interrupted run resumes from: written whole or not at all."""

import copy
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msmlp.model.backends.torch.devices import pick_device
from msmlp.model.calibration.calibrate import calibrate_on
from msmlp.model.data import Split, load_dataset
from msmlp.model.data.dataset import split_digest
from msmlp.model.errors import ConfigError, DataError, OptionError, TrainingStoppedError
from msmlp.model.export import refresh_graphs
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, override
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.batches import Arrays, augmentation, normalizer
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.loop import Learner, Start, exit_accuracies, load_start, steps_per_epoch, train_epoch
from msmlp.model.training.losses import Imitator
from msmlp.model.training.optim import Optimizers
from msmlp.model.training.recipes import NetworkConfig, Recipe, TrainOptions, configure
from msmlp.model.training.run_log import Journal, git_commit, plot_curves, results_of, setup_of, training_record
from msmlp.model.training.teacher import Teacher, load_teacher, write_teacher
from msmlp.model.weights import load_weights, write_weights
from msmlp.model.weights.manifest import MANIFEST, TEACHER

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, learner: Learner, epochs_done: int, setup: dict[str, Any]) -> None:
    """Write the state after `epochs_done` epochs; `setup` must be equal on resuming."""
    state = {
        "epochs_done": epochs_done,
        "setup": setup,
        "model": learner.model.state_dict(),
        "average": learner.average.state_dict() if learner.average is not None else None,
        "optimizers": learner.optimizers.state_dict(),
        "git_commit": learner.commit,
        "imitator": learner.imitator.state_dict() if learner.imitator is not None else None,
    }
    partial = folder / (CHECKPOINT + ".partial")
    torch.save(state, partial)
    partial.replace(folder / CHECKPOINT)


def load_checkpoint(folder: Path, learner: Learner, setup: dict[str, Any]) -> int:
    """Bring `learner` to where the run stopped → epochs done, 0 without a checkpoint.

    Raises:
        DataError: the checkpoint is of another run (the differing settings are named) or cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=learner.device, weights_only=True)
        theirs = state["setup"]
    except Exception as error:  # a damaged zip raises nearly anything
        raise DataError(f"{path} cannot be read ({type(error).__name__}); start afresh without --resume") from None
    different = [key for key in {**setup, **theirs} if theirs.get(key) != setup.get(key)]
    if different:
        raise DataError(f"{path} is of a run with another {', '.join(different)}; resume with the same options")
    learner.model.load_state_dict(state["model"])
    if learner.average is not None:
        learner.average.load_state_dict(state["average"])
    if learner.imitator is not None:
        learner.imitator.load_state_dict(state["imitator"])
    learner.optimizers.load_state_dict(state["optimizers"])
    learner.commit = state.get("git_commit", learner.commit)
    return int(state["epochs_done"])


# FROM model/training/trainer.py:
# `msmlp train`: data and a preset in, a weights folder (or a teacher's) out.

CHECKPOINT_SECONDS = 10.0
"""The least time between two checkpoints: a GPU does small epochs faster than a disk takes them."""


def train(options: TrainOptions) -> Path:
    """Train (or resume) and leave a weights folder in `options.out` → that folder; a teacher's for a teacher's preset.

    Raises:
        CallerError: options, data or a checkpoint that do not fit.
        TrainingStoppedError: NaN or an interrupt; `--resume` goes on from the last checkpoint.
    """
    network, plan = configure(options)
    device = pick_device(options.device)
    dtype = _dtype(options, device)
    teacher = load_teacher(options.teacher, device, dtype) if options.teacher is not None else None
    dataset = load_dataset(options.data, network.image_size)
    network = override(network, {"classes": len(dataset.classes)})
    training, validation = dataset.train_and_validation(options.seed)
    digest = split_digest(validation)
    if teacher is not None:
        teacher.check(dataset.classes, network.image_size, digest)
    start = load_start(options.init) if options.init is not None else None
    if start is not None:
        start.check(dataset.classes, digest)
    if options.limit_per_class is not None:
        training = training.limited(options.limit_per_class)
    preprocess = _statistics(training, network.image_size)

    _make_folder(options.out)
    torch.manual_seed(options.seed)
    learner = _learner(network, plan, preprocess, len(training), device, dtype, teacher, start, options)
    setup = setup_of(options, learner, digest, len(training))
    if not options.resume and (options.out / CHECKPOINT).exists():
        raise OptionError("out", f"{options.out} holds a run already: go on with --resume, or choose another folder")
    done = load_checkpoint(options.out, learner, setup) if options.resume else 0
    rows = _run(options, learner, training, validation, done, setup)
    plot_curves(rows, options.out / "curves.png")
    accuracies = rows[-1]["val_accuracy"] if rows else exit_accuracies(learner, _arrays(validation, device))
    left: dict[str, Any] = {
        "state": learner.final.state_dict(),
        "classes": dataset.classes,
        "preprocess": preprocess,
        "training": training_record(options, learner, dataset, training, validation, rows),
        "results": results_of(accuracies, len(validation)),
    }
    if not isinstance(network, CascadeConfig):
        (options.out / MANIFEST).unlink(missing_ok=True)
        write_teacher(options.out, config=network, **left)
        return options.out
    # What an untrained teacher left in the same folder would say that these are no weights.
    (options.out / TEACHER).unlink(missing_ok=True)
    write_weights(options.out, config=network, **left)
    # The frontier and the graphs come with the weights, so that what training leaves can be served.
    calibrate_on(load_weights(options.out), validation, options.device)
    refresh_graphs(options.out, validation)
    return options.out


def _dtype(options: TrainOptions, device: torch.device) -> torch.dtype:
    """bf16 on a GPU. On a CPU only on request: few have instructions for it, and the others are slower."""
    if options.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if options.dtype == "bfloat16" else torch.float32


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", f"{path} cannot be made a folder ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise OptionError("out", f"{path} cannot be written to")


def _learner(
    network: NetworkConfig,
    plan: Recipe,
    preprocess: Preprocess,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
    teacher: Teacher | None,
    start: Start | None,
    options: TrainOptions,
) -> Learner:
    model: Cascade | ConvNet
    if isinstance(network, CascadeConfig):
        model = Cascade(network).to(device)
        if start is not None:
            start.into(model)
    else:
        # Convolutions are faster with the channels last.
        model = ConvNet(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check(plan, model, teacher, start)
    imitator = None
    if plan.imitation and teacher is not None and isinstance(model, Cascade):
        imitator = Imitator(model, teacher.width).to(device)
    return Learner(
        model=model,
        average=copy.deepcopy(model).requires_grad_(False) if plan.ema else None,
        optimizers=Optimizers(
            model if imitator is None else imitator,
            plan,
            steps_per_epoch(images, plan.batch_size),
            capturable=device.type == "cuda",
        ),
        augment=augmentation(plan, network.image_size),
        normalize=normalizer(preprocess, device),
        recipe=plan,
        device=device,
        dtype=dtype,
        teacher=teacher,
        imitator=imitator,
        compiles=device.type == "cuda" if options.compile is None else options.compile,
        start=start,
        seed=options.seed,
        commit=git_commit(),  # now, whatever is committed while it trains
    )


def _check(plan: Recipe, model: Cascade | ConvNet, teacher: Teacher | None, start: Start | None) -> None:
    """ConfigError for a recipe that does not fit the network."""
    exits = len(model.stages) if isinstance(model, Cascade) else 1
    if plan.exit_weights is not None and len(plan.exit_weights) != exits:
        raise ConfigError(f"exit_weights: {len(plan.exit_weights)} numbers for {exits} exits")
    if start is not None and not isinstance(model, Cascade):
        raise ConfigError("init: a teacher starts from random weights")
    if teacher is not None and not isinstance(model, Cascade):
        raise ConfigError("a teacher is trained without a teacher")
    if plan.optimizer == "muon" and not isinstance(model, Cascade):
        raise ConfigError("optimizer: muon is for the matrices of a cascade's blocks; a teacher takes sgd or adamw")


def _run(
    options: TrainOptions, learner: Learner, training: Split, validation: Split, done: int, setup: dict[str, Any]
) -> list[dict[str, Any]]:
    train_arrays, val_arrays = _arrays(training, learner.device), _arrays(validation, learner.device)
    epochs = learner.recipe.epochs
    batch = min(learner.recipe.batch_size, len(training))
    journal = Journal(options.out, steps_per_epoch(len(training), batch) * batch, epochs, done)
    safe, saved = done, -math.inf
    try:
        for epoch in range(done, epochs):
            # Seeded anew each epoch: a resumed run draws what an uninterrupted one would have drawn.
            torch.manual_seed(options.seed * 1_000_003 + epoch)
            loss, speed = train_epoch(learner, train_arrays, epoch, journal.tick)
            accuracies = exit_accuracies(learner, val_arrays)
            journal.epoch({"epoch": epoch + 1, "loss": loss, "val_accuracy": accuracies, "images_per_second": speed})
            if epoch + 1 == epochs or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                save_checkpoint(options.out, learner, epoch + 1, setup)
                safe, saved = epoch + 1, time.monotonic()
    except KeyboardInterrupt:
        journal.keep(safe)
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
