"""`msmlp train`: data and a preset in, a weights folder (or a teacher's) out."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msmlp.model.backends.torch.devices import pick_device, pick_dtype
from msmlp.model.calibration.calibrate import calibrate_on
from msmlp.model.data import Dataset, Split, load_dataset
from msmlp.model.data.dataset import Partition, split_digest
from msmlp.model.errors import ConfigError, OptionError, TrainingStoppedError
from msmlp.model.export.folder import refresh_graphs
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, override
from msmlp.model.platform import keep_freed_memory
from msmlp.model.preprocess import Preprocess
from msmlp.model.training import checkpoint
from msmlp.model.training.batches import Arrays, normalizer
from msmlp.model.training.capture import as_cuda_graph
from msmlp.model.training.checkpoint import Checkpoint, Position
from msmlp.model.training.convnet import ConvNet, write_teacher
from msmlp.model.training.epochs import after_epochs, train_epochs
from msmlp.model.training.loop import Learner, exit_accuracies
from msmlp.model.training.opening import announce, announce_run
from msmlp.model.training.pretrained import InitialWeights, Teacher, load_initial_weights, load_teacher
from msmlp.model.training.recipes import NetworkConfig, Recipe, TrainOptions, configure
from msmlp.model.training.run_log import exit_results, git_commit, plot_curves, run_metadata
from msmlp.model.training.threads import fastest_threads
from msmlp.model.weights import load_weights, write_weights
from msmlp.model.weights.manifest import MANIFEST, TEACHER

TRIAL_IMAGES = 128
"""At most this many make up the batch on which numbers of threads are tried."""


def train(options: TrainOptions) -> Path:
    """Train (or resume) and leave a weights folder in `options.out`, or a teacher's for a teacher preset → that folder.

    Raises:
        CallerError: options, data or a checkpoint that do not fit.
        TrainingStoppedError: NaN, an interrupt or a full disk; `--resume` continues from the last checkpoint.
    """
    initial = load_initial_weights(options.init) if options.init is not None else None
    network, recipe = configure(options, initial.cascade if initial is not None else None)
    if initial is not None:
        initial.check(network)
    if not options.resume and (options.out / checkpoint.LAST).exists():
        raise OptionError("out", f"{options.out} already holds a run; add --resume, or choose another folder")
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    teacher = load_teacher(options.teacher, device, dtype) if options.teacher is not None else None
    dataset, partition = _load(options, network.image_size, teacher, initial)
    training, validation = partition.training, partition.validation
    network = override(network, {"classes": len(dataset.classes)})
    preprocess = initial.preprocess if initial is not None else _statistics(training, network.image_size)

    _make_folder(options.out)
    announce(dataset, partition)
    model = _model(network, recipe, teacher, initial, dataset.classes, options, device)
    learner = _learner(options, model, recipe, normalizer(preprocess, device), teacher, initial, dtype)
    setup = checkpoint.setup_of(learner, split_digest(validation), training)
    found = checkpoint.load(options.out, learner, setup) if options.resume else None
    arrays = _arrays(training, device), _arrays(validation, device)
    if isinstance(learner.model, ConvNet):
        learner.fit_whitening(arrays[0])
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(_threads(options, found, learner, arrays[0]))
    position = Position()
    if found is not None:
        found.restore(learner)
        position = found.position
    announce_run(learner, arrays[0], recipe.epochs - position.epochs)
    with _writing(options.out), _alone(options.out):
        trains = position.epochs < recipe.epochs
        rows = train_epochs(options.out, learner, *arrays, position, setup)
        with after_epochs(options.out, position, recipe.epochs):
            plot_curves(rows, options.out / "curves.png")
            # Without an epoch, the last row may be of another length of this run, whose checkpoint was never written.
            accuracies = rows[-1]["val_accuracy"] if trains else exit_accuracies(learner, arrays[1])
            left = _description(options, learner, dataset, partition, rows, accuracies)
            _write(options.out, network, left | {"preprocess": preprocess}, partition, options.device)
    return options.out


def _learner(
    options: TrainOptions,
    model: Cascade | ConvNet,
    recipe: Recipe,
    normalize: Callable[[Tensor], Tensor],
    teacher: Teacher | None,
    initial: InitialWeights | None,
    dtype: torch.dtype,
) -> Learner:
    on_gpu = next(model.parameters()).is_cuda
    return Learner(
        model,
        recipe,
        normalize,
        teacher,
        dtype,
        compiles=on_gpu if options.compile is None else options.compile,
        capture=as_cuda_graph if on_gpu else None,
        initial=initial,
        seed=options.seed,
        commit=git_commit(),  # now, before anything is committed during training
    )


def _description(
    options: TrainOptions,
    learner: Learner,
    dataset: Dataset,
    partition: Partition,
    rows: list[dict[str, Any]],
    accuracies: list[float],
) -> dict[str, Any]:
    # The first look at the audit images, when nothing is left to choose.
    audit = partition.audit
    audited = [] if audit is None else exit_accuracies(learner, _arrays(audit, learner.device))
    return {
        "state": learner.final.state_dict(),
        "classes": dataset.classes,
        "training": run_metadata(options, learner, dataset, partition, rows),
        "results": exit_results(accuracies, partition.validation, audited, audit),
    }


def _load(
    options: TrainOptions, image_size: int, teacher: Teacher | None, initial: InitialWeights | None
) -> tuple[Dataset, Partition]:
    """The data set, and its training, validation and audit images, which must suit the teacher and initial weights."""
    dataset = load_dataset(options.data, image_size, strict=options.strict)
    partition = dataset.partition(options.seed)
    if options.limit_per_class is not None:
        partition = replace(partition, training=partition.training.limited(options.limit_per_class))
    if teacher is not None:
        teacher.check(dataset.classes, image_size, partition)
    if initial is not None:
        if initial.classes != dataset.classes:
            sys.stderr.write(f"init: {initial.name} has other classes; the heads are new, the rest is kept\n")
        if leak := initial.leak_into(dataset, partition):
            sys.stderr.write(f"warning: init: {leak}; the accuracy on them may be too high\n")
    return dataset, partition


def _write(out: Path, network: NetworkConfig, left: dict[str, Any], partition: Partition, device: str) -> None:
    # The other kind's description goes: it may be left from an untrained network in the same folder.
    if isinstance(network, CascadeConfig):
        (out / TEACHER).unlink(missing_ok=True)
        write_weights(out, config=network, **left)
        calibrate_on(load_weights(out), partition.validation, partition.audit, device)
        refresh_graphs(out, partition.validation)
    else:
        (out / MANIFEST).unlink(missing_ok=True)
        write_teacher(out, config=network, **left)


def _statistics(training: Split, size: int) -> Preprocess:
    # From counts of the 256 values: exact, and without a second copy of the data.
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(training.pixels[..., c].ravel(), minlength=256) for c in range(3)])
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(axis=1) - mean**2, 1e-6))
    return Preprocess(size=size, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", f"cannot create the folder {path} ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise OptionError("out", f"cannot write to {path}")


def _model(
    network: NetworkConfig,
    recipe: Recipe,
    teacher: Teacher | None,
    initial: InitialWeights | None,
    classes: tuple[str, ...],
    options: TrainOptions,
    device: torch.device,
) -> Cascade | ConvNet:
    torch.manual_seed(options.seed)
    exits = len(network.stages) if isinstance(network, CascadeConfig) else 1
    if recipe.exit_weights is not None and len(recipe.exit_weights) != exits:
        raise ConfigError(f"exit_weights: {len(recipe.exit_weights)} numbers for {exits} exits")
    if isinstance(network, CascadeConfig):
        model = Cascade(network).to(device)
        if initial is not None:
            initial.load_into(model, classes)
        model.freeze(options.freeze)
        return model
    if teacher is not None:
        raise ConfigError("teacher: only a cascade can learn from a teacher, another teacher cannot")
    if recipe.optimizer == "muon":
        raise ConfigError("optimizer: muon trains the blocks of a cascade only; for a teacher use sgd or adamw")
    # Convolutions are faster with the channels last.
    return ConvNet(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _threads(options: TrainOptions, found: Checkpoint | None, learner: Learner, training: Arrays) -> int:
    """How many a CPU trains with: what the options say, what the run began with, or what is fastest here."""
    written = found.threads if found is not None else None
    if written and options.threads not in (None, written) and not options.allow_drift:
        raise OptionError(
            "threads",
            f"the run in {options.out} began with {written}; with {options.threads} its weights would not be bit for "
            "bit those of an uninterrupted run: leave it out, or add --allow-drift",
        )
    if known := options.threads or written:
        return known
    objective, chosen = deepcopy(learner.objective), slice(min(learner.recipe.batch_size, TRIAL_IMAGES))
    targets = torch.eye(learner.model.config.classes)[training.labels[chosen]]

    def step() -> None:
        objective([training.pixels[chosen], targets], False).backward()

    return fastest_threads(step)


def _arrays(split: Split, device: torch.device) -> Arrays:
    pixels = torch.from_numpy(np.ascontiguousarray(split.pixels.transpose(0, 3, 1, 2)))
    return Arrays(pixels.to(device), torch.from_numpy(split.labels).to(device))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two runs in one folder would overwrite each other's checkpoints: OptionError for the second."""
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError("out", f"another process is training in {out}; choose another folder") from None
        except OSError:  # some file systems have no locks
            pass
        yield
    finally:
        os.close(folder)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say which file of a run could not be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        kept = "; the checkpoint before is kept: make room and continue with --resume"
        text = f"{error.filename or out} cannot be written ({error.strerror or error})"
        raise TrainingStoppedError(text + kept * (out / checkpoint.LAST).exists()) from None
