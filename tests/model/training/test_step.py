"""The objective, its compilation, and the average; capture is tested in test_capture.py."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import PRESETS
from msmlp.model.training.batches import Arrays, Views
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.loop import Learner
from msmlp.model.training.losses import FeaturePredictor
from msmlp.model.training.recipes import TEACHERS, Recipe
from msmlp.model.training.step import CompiledObjective, Objective, average_share, averaging

Build = Callable[[Recipe], Learner]


@pytest.fixture
def batch(arrays: Arrays) -> Views:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(30, 3, generator=generator), torch.randn(30, 5, 2, 2, generator=generator)
    targets = torch.nn.functional.one_hot(arrays.labels, 3)
    return [arrays.pixels, *(each.half() for each in (targets, *teacher))]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_normalisation_network_and_losses_compile_as_one_graph(
    features: bool, dtype: torch.dtype, plain: Recipe, learner: Build, batch: Views
) -> None:
    """`fullgraph` refuses what would fall back to Python; the compiler itself needs a GPU or a C++ compiler."""
    made = learner(plain.model_copy(update={"imitation": 0.5, "last_weight": 0.1}))
    predictor = FeaturePredictor(made.model, 5)  # type: ignore[arg-type]
    objective = Objective(made.model, made.recipe, made.normalize, predictor, dtype)
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    found = []
    for module in (objective, compiled):
        predictor.zero_grad()
        loss = module(batch, features)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in predictor.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == 1 + len(list(predictor.parameters())) - (0 if features else 2)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_an_exits_gradients_in_bfloat16_are_those_in_float32(plain: Recipe) -> None:
    """torch sums those of a bfloat16 norm in bfloat16 on a CPU, and then half of them is lost."""
    torch.manual_seed(0)
    model = Cascade(PRESETS["tiny"])
    batch = [torch.randint(256, (64, 3, 32, 32)), nn.functional.one_hot(torch.arange(64) % 10, 10).float()]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        Objective(model, plain, lambda images: images - 0.5, dtype=dtype)(batch, False).backward()
        norms = [model.stage(k).norm for k in range(3)]
        found.append(torch.cat([p.grad for norm in norms for p in norm.parameters() if p.grad is not None]))
    assert (found[1] - found[0]).norm() < 0.03 * found[0].norm()


@pytest.mark.system
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_teachers_compiled_gradients_in_bfloat16_are_the_plain_ones(
    plain: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    """With g++ on a CPU. They were NaN while its maxima were found by their value."""
    torch.manual_seed(0)
    model = ConvNet(TEACHERS["teacher-tiny"])
    batch = [torch.randint(256, (32, 3, 32, 32)), nn.functional.one_hot(torch.arange(32) % 10, 10).float()]
    objective = Objective(model, plain, lambda images: images - 0.5, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        CompiledObjective(objective)(batch, False).backward()
    assert [record.getMessage() for record in caplog.records if "training step" in record.getMessage()] == []
    learnt = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt)


def test_imitation_adds_its_weight_of_the_loss(plain: Recipe, learner: Build, batch: Views) -> None:
    made = learner(plain.model_copy(update={"imitation": 0.5}))
    predictor = FeaturePredictor(made.model, 5)  # type: ignore[arg-type]
    for weight in (0.5, 1.0):
        recipe = made.recipe.model_copy(update={"imitation": weight})
        objective = Objective(made.model, recipe, made.normalize, predictor)
        with torch.no_grad():
            without, with_it = (objective(batch, features).item() for features in (False, True))
        if weight == 0.5:
            half = with_it - without
    assert with_it - without == pytest.approx(2 * half, rel=1e-4)
    assert half > 0


def test_the_average_forgets_its_start_soon_and_later_hardly_anything(plain: Recipe, learner: Build) -> None:
    average, model = learner(plain).model, learner(plain).model
    for cascade, value in ((average, 0.0), (model, 1.0)):
        for parameter in cascade.parameters():
            parameter.requires_grad_(False).fill_(value)
    move, path = averaging(average, model), []
    for step in range(100):
        move(torch.tensor(average_share(0.9, step)))
        path.append(average.stage(0).head.bias[0].item())
    assert path[0] == pytest.approx(0.9)
    assert path[10] > 0.99
    for parameter in model.parameters():
        parameter.fill_(2.0)
    before = path[-1]
    move(torch.tensor(average_share(0.9, 100)))
    assert average.stage(0).head.bias[0].item() - before == pytest.approx(0.1 * (2 - before), rel=1e-3)


class Counts(nn.Module):
    """The sum of what it is given and of a weight, times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.factor, self.calls = factor, 0

    def forward(self, tensors: list[Tensor], features: bool) -> Tensor:
        self.calls += 1
        return self.factor * (self.weight.sum() + tensors[0].sum() + float(features))


BATCH = [torch.arange(3.0)]


def test_what_agrees_is_used_and_compared_once_each_way(caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = Counts(), Counts(1.01)
    both = CompiledObjective(plain, fast)
    losses = [both(BATCH, features).item() for features in (False, True, False, True)]
    assert losses == pytest.approx([1.01 * 4, 1.01 * 5, 1.01 * 4, 1.01 * 5])
    assert (plain.calls, fast.calls) == (2, 6)
    assert not caplog.records


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1.2])
def test_what_disagrees_is_given_up_and_said_once(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = Counts(), Counts(factor)
    both = CompiledObjective(plain, fast)
    with caplog.at_level(logging.WARNING):
        losses = [both(BATCH, features).item() for features in (False, True, False)]
    assert losses == [4.0, 5.0, 4.0]
    assert fast.calls == 1
    [record] = caplog.records
    assert "when compiled, 4 when not; continuing without torch.compile" in record.getMessage()


class Backwards(torch.autograd.Function):
    """Leaves the loss, and multiplies its gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0] * ctx.factor, None


@pytest.mark.parametrize("factor", [float("nan"), 0.0, 1.5])
def test_a_right_loss_with_wrong_gradients_is_given_up(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Counts):
        def forward(self, tensors: list[Tensor], features: bool) -> Tensor:
            loss: Tensor = Backwards.apply(super().forward(tensors, features), factor)
            return loss

    plain = Counts()
    both = CompiledObjective(plain, Wrong())
    with caplog.at_level(logging.WARNING):
        both(BATCH, False).backward()
    assert plain.weight.grad is not None
    assert plain.weight.grad.item() == 1.0
    [record] = caplog.records
    assert "has other gradients when compiled" in record.getMessage()


def test_the_loss_that_is_left_has_a_gradient() -> None:
    for factor in (1.0, float("nan")):
        plain, fast = Counts(), Counts(factor)
        CompiledObjective(plain, fast)(BATCH, False).backward()
        moved = plain.weight if factor != 1.0 else fast.weight
        assert moved.grad is not None
        assert moved.grad.item() == 1.0


def test_a_compiler_that_is_missing_is_said_and_done_without(caplog: pytest.LogCaptureFixture) -> None:
    class Missing(nn.Module):
        def forward(self, tensors: list[Tensor], features: bool) -> Tensor:
            raise OSError("no g++")

    both = CompiledObjective(Counts(), Missing())
    with caplog.at_level(logging.WARNING):
        assert [both(BATCH, features).item() for features in (False, True, False)] == [4.0, 5.0, 4.0]
    [record] = caplog.records
    assert record.getMessage() == "the training step could not be compiled (OSError); continuing without torch.compile"


@pytest.mark.parametrize("wrong", [False, True])
def test_statistics_of_norms_move_once_a_batch(wrong: bool) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, tensors: list[Tensor], features: bool) -> Tensor:
            out: Tensor = self.norm(tensors[0]).square().sum()
            return out

    class Wrong(nn.Module):
        def __init__(self, plain: nn.Module) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, tensors: list[Tensor], features: bool) -> Tensor:
            out: Tensor = 2 * self.plain(tensors, features)
            return out

    plain, alone = Normed(), Normed()
    both = CompiledObjective(plain, Wrong(plain) if wrong else plain)
    batch = [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
    for _ in range(2):
        assert both(batch, False).item() == pytest.approx(alone(batch, False).item())
    assert plain.norm.num_batches_tracked is not None
    assert int(plain.norm.num_batches_tracked) == 2
    assert torch.allclose(plain.norm.running_mean, alone.norm.running_mean)  # type: ignore[arg-type]
