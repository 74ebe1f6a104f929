"""Predicting a teacher's feature map from the last stage's tokens."""

import pytest
import torch

from msmlp.model.nn.cascade import Cascade
from msmlp.model.training.losses import Imitator, imitation_loss, pooled_map, squares_of, token_map
from tests.model.training.conftest import CONFIG


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
    assert imitation_loss(standardised, wanted).item() == pytest.approx(0, abs=1e-5)
    # Predicting nothing costs the variance, which is 1.
    assert imitation_loss(torch.zeros(2, 4, 3), 100 * wanted).item() == pytest.approx(1, rel=1e-4)


def test_it_reaches_every_block_but_no_head() -> None:
    torch.manual_seed(0)
    model = Cascade(CONFIG)
    imitator = Imitator(model, 5)
    logits, predicted = imitator(torch.randn(4, 3, 8, 8))
    assert [tuple(z.shape) for z in logits] == [(4, 3), (4, 3)]
    assert predicted.shape == (4, 4, 5)
    imitation_loss(predicted, torch.randn(4, 5, 2, 2)).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in model.named_parameters()} - moved == {
        f"stages.{k}.{part}" for k in range(2) for part in ("head.weight", "head.bias", "norm.weight", "norm.bias")
    }
