"""The plain loop trains what the product trains, so that their speeds can be compared."""

from copy import deepcopy

import pytest
import torch

from benchmarks.training import compare, crop_flip, plain, product
from msmlp.model.errors import ConfigError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, StageConfig
from msmlp.model.training.batches import Arrays
from msmlp.model.training.recipes import RECIPES, Recipe

CONFIG = CascadeConfig(
    image_size=8,
    classes=3,
    stages=(
        StageConfig(patch=8, width=8, depth=1, token_hidden=4, channel_hidden=16),
        StageConfig(patch=4, width=8, depth=1, token_hidden=4, channel_hidden=16),
    ),
)
QUICK = RECIPES["quick"].model_copy(update={"epochs": 6, "batch_size": 12, "augment": "none", "label_smoothing": 0.1})


@pytest.fixture
def data() -> Arrays:
    generator = torch.Generator().manual_seed(1)
    return Arrays(torch.randint(256, (30, 3, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(30) % 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_both_loops_leave_the_same_network(optimizer: str, data: Arrays) -> None:
    recipe = QUICK.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    torch.manual_seed(0)
    models = [Cascade(CONFIG)]
    models.append(deepcopy(models[0]))
    start = deepcopy(models[0])
    loops = [make(model, recipe, data, torch.float32) for make, model in zip((product, plain), models, strict=True)]
    for number in range(3):
        for loop in loops:
            loop(number)
    images = data.pixels.float() / 255
    with torch.no_grad():
        ours, theirs, before = (torch.stack(model(images)) for model in (*models, start))
    assert (ours - before).abs().mean() > 20 * (ours - theirs).abs().mean()
    assert torch.allclose(ours, theirs, atol=0.02)


def test_the_plain_crops_are_crops_at_every_offset() -> None:
    images = torch.rand(2000, 3, 3, 3) + 1
    torch.manual_seed(0)
    moved = crop_flip(images, 1)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    crops = [padded[:, :, top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    matches = torch.stack([(moved == each).flatten(1).all(1) for crop in crops for each in (crop, crop.flip(3))])
    assert matches.any(0).all()
    assert matches.any(1).all()


@pytest.mark.parametrize(("field", "value", "known"), [("mixup", 1, 0), ("epochs_per_view", 2, 1)])
def test_what_the_plain_loop_does_not_know_is_refused(field: str, value: int, known: int, data: Arrays) -> None:
    recipe: Recipe = QUICK.model_copy(update={field: value})
    with pytest.raises(ConfigError, match=f"{field}: expected one of {known}"):
        plain(Cascade(CONFIG), recipe, data, torch.float32)


def test_the_ratio_is_of_images_per_second(data: Arrays) -> None:
    threads = torch.get_num_threads()
    try:
        found = compare(CONFIG, QUICK, data, 1, "float32", rounds=3)
    finally:
        torch.set_num_threads(threads)
    assert found["product"] > 0
    assert found["plain"] > 0
    assert found["least"] <= found["ratio"]
