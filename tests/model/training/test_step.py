"""The objective as one graph; what the average does is in test_loop.py, capture in test_capture.py."""

from collections.abc import Callable

import pytest
import torch

from msmlp.model.training.batches import Arrays, Batch
from msmlp.model.training.loop import Learner
from msmlp.model.training.losses import Imitator, Lesson
from msmlp.model.training.recipes import Recipe
from msmlp.model.training.step import Objective

Build = Callable[[Recipe], Learner]


@pytest.fixture
def batch(arrays: Arrays) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lesson = Lesson(torch.randn(30, 3, generator=generator), torch.randn(30, 5, 2, 2, generator=generator))
    return Batch(arrays.pixels, torch.nn.functional.one_hot(arrays.labels, 3).half(), lesson.half())


@pytest.mark.parametrize("imitates", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_normalisation_network_and_losses_compile_as_one_graph(
    imitates: bool, dtype: torch.dtype, plain: Recipe, learner: Build, batch: Batch
) -> None:
    """`fullgraph` refuses what would fall back to Python; the compiler itself needs a GPU or a C++ compiler."""
    made = learner(plain.model_copy(update={"imitation": 0.5, "last_weight": 0.1}))
    imitator = Imitator(made.model, 5)  # type: ignore[arg-type]
    objective = Objective(made.model, made.recipe, made.normalize, imitator, dtype)
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    found = []
    for module in (objective, compiled):
        imitator.zero_grad()
        loss = module(batch.tensors(), imitates)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in imitator.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == 1 + len(list(imitator.parameters())) - (0 if imitates else 2)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_imitation_adds_its_weight_of_the_loss(plain: Recipe, learner: Build, batch: Batch) -> None:
    made = learner(plain.model_copy(update={"imitation": 0.5}))
    imitator = Imitator(made.model, 5)  # type: ignore[arg-type]
    for weight in (0.5, 1.0):
        recipe = made.recipe.model_copy(update={"imitation": weight})
        objective = Objective(made.model, recipe, made.normalize, imitator)
        with torch.no_grad():
            without, with_it = (objective(batch.tensors(), imitates).item() for imitates in (False, True))
        if weight == 0.5:
            half = with_it - without
    assert with_it - without == pytest.approx(2 * half, rel=1e-4)
    assert half > 0
