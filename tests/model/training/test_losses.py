"""The losses of exits, teacher, last exit and features."""

from pathlib import Path

import pytest
import torch

from msmlp.model.errors import ConfigError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.losses import (
    FeaturePredictor,
    cascade_loss,
    divergence,
    exit_loss,
    feature_loss,
    pooled_map,
    squares_of,
    token_map,
)
from msmlp.model.training.recipes import Recipe, TrainOptions
from msmlp.model.training.trainer import train
from tests.model.training.conftest import CONFIG

LOGITS = [torch.tensor([[1.0, -0.5, 0.2], [0.1, 0.4, -0.3]]) * (k + 1) for k in range(3)]
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.3, 0.7]])


def test_exits_are_weighted(plain: Recipe) -> None:
    recipe = plain.model_copy(update={"exit_weights": (0.5, 0.0, 2.0)})
    parts = [exit_loss(recipe, z, TARGETS, None).item() for z in LOGITS]
    expected = 0.5 * parts[0] + 2 * parts[2]
    assert cascade_loss(recipe, LOGITS, TARGETS, None).item() == pytest.approx(expected)


def test_earlier_exits_learn_the_last_which_does_not_learn_them(plain: Recipe) -> None:
    recipe = plain.model_copy(update={"last_weight": 0.7, "distill_temperature": 3.0})
    logits = [z.clone().requires_grad_() for z in LOGITS]
    loss = cascade_loss(recipe, logits, TARGETS, None)
    alone = cascade_loss(plain, LOGITS, TARGETS, None)
    extra = sum(0.7 * divergence(z, LOGITS[-1], 3.0).item() for z in LOGITS[:-1])
    assert extra > 0.01
    assert loss.item() == pytest.approx(alone.item() + extra)
    loss.backward()
    last = LOGITS[-1].clone().requires_grad_()
    exit_loss(plain, last, TARGETS, None).backward()
    assert logits[-1].grad is not None
    assert last.grad is not None
    assert torch.allclose(logits[-1].grad, last.grad)
    first = LOGITS[0].clone().requires_grad_()
    exit_loss(plain, first, TARGETS, None).backward()
    assert logits[0].grad is not None
    assert first.grad is not None
    assert not torch.allclose(logits[0].grad, first.grad)


@pytest.mark.parametrize("weights", [[-1, 1, 1], [0, 0, 0], [], [1e999, 1, 1]])
def test_weights_that_teach_nothing_are_refused(weights: list[float]) -> None:
    changes = {"exit_weights": weights}
    with pytest.raises(ConfigError, match="exit_weights: expected finite numbers of at least 0, not all of them 0"):
        train(TrainOptions(Path("nowhere"), "tiny", Path("nowhere"), changes=changes))


@pytest.mark.parametrize(("weight", "tau"), [(0.9, 2.0), (0.3, 1.0), (1.0, 4.0), (0.0, 2.0)])
def test_the_loss_of_an_exit_is_the_mixture_by_hand(weight: float, tau: float, plain: Recipe) -> None:
    recipe = plain.model_copy(update={"distill_weight": weight, "distill_temperature": tau})
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 5, 3, generator=generator).unbind()
    # Soft targets, as mixup and CutMix make them.
    targets = torch.softmax(torch.randn(5, 3, generator=generator), dim=1)
    ours, theirs = (torch.softmax(z / tau, dim=1) for z in (logits, taught))
    divergence = (theirs * (theirs / ours).log()).sum(1).mean()
    entropy = -(targets * torch.softmax(logits, dim=1).log()).sum(1).mean()
    expected = (1 - weight) * entropy + weight * tau**2 * divergence
    assert exit_loss(recipe, logits, targets, taught).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_exit_that_agrees_with_the_teacher_has_nothing_left_to_learn_from_it(plain: Recipe) -> None:
    recipe = plain.model_copy(update={"distill_weight": 1.0})
    logits = torch.randn(4, 3)
    # Logits are defined up to a constant per image.
    taught = logits + torch.randn(4, 1)
    assert exit_loss(recipe, logits, torch.eye(4, 3), taught).item() == pytest.approx(0, abs=1e-6)


def test_tokens_lie_as_their_patches_do() -> None:
    tokens = torch.arange(32.0).reshape(1, 16, 2)
    grid = token_map(tokens)
    assert grid.shape == (1, 2, 4, 4)
    assert grid[0, 0, 1, 2].item() == tokens[0, 6, 0].item()
    quarter = pooled_map(grid)
    assert quarter[0, 1, 0, 1].item() == pytest.approx(tokens[0, [2, 3, 6, 7], 1].mean().item())


def test_squares_lie_as_the_map_does() -> None:
    features = torch.arange(24.0).reshape(1, 6, 2, 2)
    squares = squares_of(features)
    assert squares.shape == (1, 4, 6)
    assert torch.equal(squares[0, 2], features[0, :, 1, 0])


def test_the_loss_is_of_standardised_features() -> None:
    wanted = torch.tensor([1.0, 5.0, 3.0])[None, :, None, None].expand(2, 3, 2, 2)
    standardised = torch.tensor([-1.224745, 1.224745, 0.0]).expand(2, 4, 3)
    assert feature_loss(standardised, wanted).item() == pytest.approx(0, abs=1e-5)
    # Predicting nothing costs the variance, which is 1.
    assert feature_loss(torch.zeros(2, 4, 3), 100 * wanted).item() == pytest.approx(1, rel=1e-4)


def test_it_reaches_every_block_but_no_head() -> None:
    torch.manual_seed(0)
    model = Cascade(CONFIG)
    predictor = FeaturePredictor(model, 5)
    logits, predicted = predictor(torch.randn(4, 3, 8, 8))
    assert [tuple(z.shape) for z in logits] == [(4, 3), (4, 3)]
    assert predicted.shape == (4, 4, 5)
    feature_loss(predicted, torch.randn(4, 5, 2, 2)).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in model.named_parameters()} - moved == {
        f"stages.{k}.{part}" for k in range(2) for part in ("head.weight", "head.bias", "norm.weight", "norm.bias")
    }
