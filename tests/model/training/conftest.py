"""A learner on synthetic images, and a training run of a second."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, StageConfig
from msmlp.model.training.loop import Arrays, Learner
from msmlp.model.training.recipes import Recipe
from msmlp.model.training.trainer import TrainOptions, train
from tests.conftest import Once

CONFIG = CascadeConfig(
    image_size=8,
    classes=3,
    stages=(
        StageConfig(patch=8, width=8, depth=1, token_hidden=4, channel_hidden=16),
        StageConfig(patch=4, width=8, depth=1, token_hidden=4, channel_hidden=16),
    ),
)


@pytest.fixture(autouse=True)
def _no_graphs(no_graphs: None) -> None:
    """No run here leaves graphs but that of `tiny_weights`, whose graphs a test looks at."""


@pytest.fixture
def plain() -> Recipe:
    """A recipe that changes no image: what a loss or an update is can be worked out by hand."""
    return Recipe(epochs=4, batch_size=12, optimizer="sgd", lr=0.05, weight_decay=0, schedule="step", augment="none")


@pytest.fixture
def arrays() -> Arrays:
    """30 images of three classes, each class of its own colour."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 3
    pixels = torch.randint(0, 120, (30, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(30), labels] += 130
    return Arrays(pixels, labels)


@pytest.fixture
def learner() -> Callable[[Recipe], Learner]:
    """`learner(recipe)`: two small stages, always with the same start."""

    def build(recipe: Recipe) -> Learner:
        torch.manual_seed(0)
        model = Cascade(CONFIG)
        return Learner(model, recipe, normalize=lambda images: (images - 0.5) / 0.25)

    return build


@pytest.fixture(scope="session")
def few_digits(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of three classes, 12 small pictures each, 33 in all to train on."""
    root = tmp_path_factory.mktemp("data") / "few"
    for label in (3, 7, 8):
        folder = root / "train" / f"digit-{label}"
        folder.mkdir(parents=True)
        for number in np.flatnonzero(digits.train_labels == label)[:12]:
            Image.fromarray(digits.train[number, ::2, ::2]).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def short_run(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainOptions]:
    """`short_run(field=...)`: options of a run of half a second into a folder of its own, with everything random on."""
    options = TrainOptions(
        data=few_digits,
        preset="tiny",
        out=Path(),
        recipe="best",
        epochs=4,
        batch_size=11,
        device="cpu",
        threads=1,
        changes={"warmup_epochs": 1, "lr": 0.005, "image_size": 16, "stages.2.depth": 1},
    )

    def make(**fields: Any) -> TrainOptions:
        changes = {**options.changes, **fields.pop("changes", {})}
        return replace(options, **{"out": tmp_path_factory.mktemp("run"), **fields, "changes": changes})

    return make


@pytest.fixture(scope="session")
def convolutional(few_digits: Path, once: Once) -> Path:
    """The folder of a small convolutional teacher of the few digits."""
    options = {"recipe": "teacher", "epochs": 2, "batch_size": 11, "device": "cpu", "changes": {"image_size": 16}}
    return once("convolutional", lambda out: train(TrainOptions(few_digits, "teacher-tiny", out, **options)))
