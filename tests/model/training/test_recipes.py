from pathlib import Path

import pytest

from msmlp.model.errors import ConfigError
from msmlp.model.nn.config import PRESETS, override
from msmlp.model.training.recipes import RECIPES, TEACHERS, TrainOptions, configure


def test_paper_is_the_papers_numbers() -> None:
    # These only matter with a teacher or another schedule, which the paper does not have.
    taught = {"distill_weight", "distill_temperature", "imitation", "imitation_share"}
    paper = RECIPES["paper"].model_dump(exclude={*taught, "decay_share"})
    assert paper == {
        "epochs": 300,
        "batch_size": 64,
        "optimizer": "sgd",
        "lr": 0.03,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "step",
        "milestones": (0.5, 0.75),
        "warmup_epochs": 0,
        "augment": "crop-flip",
        "flip": "random",
        # Nothing that the paper does not have.
        "clip_norm": None,
        "ema": 0,
        "erasing": 0,
        "mixup": 0,
        "cutmix": 0,
        "mix_probability": 1,
        "label_smoothing": 0,
        "bias_lr": 1,
        "backbone_lr": 1,
        "nesterov": False,
        "exit_weights": None,
        "last_weight": 0,
        "epochs_per_view": 1,
    }


def test_best_is_adamw_with_warmup_cosine_average_and_strong_augmentation() -> None:
    best = RECIPES["best"]
    assert (best.optimizer, best.schedule) == ("adamw", "cosine")
    assert best.epochs >= 300
    assert min(best.warmup_epochs, best.ema, best.mixup, best.cutmix) > 0
    assert best.augment == "trivial"


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"'worst'; expected one of paper, best, distill, teacher, speedrun, quick, finetune"
    ):
        configure(TrainOptions(Path(), "tiny", Path(), "worst"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_data(name: str) -> None:
    made = RECIPES[name]
    assert type(made).model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 1e39), ("lr", 0), ("lr", float("nan")), ("weight_decay", 2), ("mixup", 1e6), ("distill_temperature", 0)],
)
def test_numbers_no_optimizer_can_use_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        override(RECIPES["best"], {field: value})


def test_a_decay_follows_the_warm_up() -> None:
    changes = {"schedule": "wsd", "epochs": 10, "warmup_epochs": 9}
    with pytest.raises(ConfigError, match="warmup_epochs: expected at most 8, when the decay begins"):
        override(RECIPES["best"], changes)
    assert override(RECIPES["best"], {**changes, "warmup_epochs": 8}).decay_begins == 8


@pytest.mark.parametrize(
    ("epochs", "share", "begins"), [(10, 0.2, 8), (10, 1, 0), (10, 0.01, 9), (1, 0.2, 0), (0, 0.2, 0)]
)
def test_a_decay_has_at_least_an_epoch(epochs: int, share: float, begins: int) -> None:
    steady = {"schedule": "wsd", "epochs": epochs, "decay_share": share, "warmup_epochs": 0}
    assert override(RECIPES["best"], steady).decay_begins == begins


@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("name", [*PRESETS, *TEACHERS])
def test_every_preset_can_see_larger_images(name: str, size: int) -> None:
    network, _ = configure(TrainOptions(Path(), name, Path(), changes={"image_size": size}))
    assert network.image_size == size


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (2, 1), (100, 2)])
def test_a_short_run_of_distill_has_a_short_warm_up(epochs: int, warmup: int) -> None:
    _, recipe = configure(TrainOptions(data=Path(), out=Path(), preset="tiny", recipe="distill", epochs=epochs))
    assert (recipe.epochs, recipe.warmup_epochs) == (epochs, warmup)


def test_a_warm_up_that_was_asked_for_is_not_shortened() -> None:
    options = TrainOptions(
        data=Path(), out=Path(), preset="tiny", recipe="distill", epochs=5, changes={"warmup_epochs": 5}
    )
    with pytest.raises(ConfigError, match="warmup_epochs: expected at most 4"):
        configure(options)
