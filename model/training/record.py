"""What a run says of itself: to its own checkpoint, so that it is resumed as it was begun, and in what it leaves."""

from typing import Any

import numpy as np
import torch

from msmlp.model.datasets import Dataset, Split
from msmlp.model.datasets.dataset import split_digest
from msmlp.model.training.loop import Learner
from msmlp.model.training.options import TrainOptions
from msmlp.model.training.provenance import command_line, device_name
from msmlp.model.training.recipes import ADDED_LATER, Recipe


def setup_of(options: TrainOptions, learner: Learner, digest: str, images: int) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    teacher, plan = learner.teacher, learner.recipe
    # Where they say nothing they are left out, so that a run begun before they existed can go on.
    unused = {name for name in ADDED_LATER if getattr(plan, name) == Recipe.model_fields[name].default}
    unused |= {"distill_weight", "distill_temperature"} if teacher is None else set()
    setup = {
        "cascade": learner.model.config.model_dump_json(),
        "recipe": plan.model_dump_json(exclude=unused),
        "teacher": teacher.sha256 if teacher is not None else None,
        "seed": options.seed,
        "validation digest": digest,
        "number of training images": images,
    }
    if learner.start is not None:
        setup["init"] = learner.start.sha256
    return setup | ({"dtype": str(learner.dtype)} if learner.dtype != torch.float32 else {})


def training_record(
    options: TrainOptions,
    learner: Learner,
    dataset: Dataset,
    training: Split,
    validation: Split,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the manifest says of the training: enough to do it again."""
    recipe, teacher, start = learner.recipe, learner.teacher, learner.start
    return {
        "data": dataset.source,
        "images": len(training),
        "validation": {"seed": options.seed, "images": len(validation), "digest": split_digest(validation)},
        "recipe_name": options.recipe_name,
        "recipe": recipe.model_dump(mode="json"),
        "preset": options.preset,
        "teacher": {"name": teacher.name, "sha256": teacher.sha256} if teacher is not None else None,
        "init": {"name": start.name, "sha256": start.sha256} if start is not None else None,
        "seed": options.seed,
        "epochs": recipe.epochs,
        "device": device_name(learner.device),
        "dtype": str(learner.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "command": command_line(),
        "git_commit": learner.commit,
        "images_per_second": float(np.median([row["images_per_second"] for row in rows])) if rows else None,
    }


def results_of(accuracies: list[float], images: int) -> list[dict[str, Any]]:
    """Validation accuracy of every exit, with the number of images."""
    return [
        {"exit": k, "split": "val", "images": images, "accuracy": accuracy} for k, accuracy in enumerate(accuracies, 1)
    ]
