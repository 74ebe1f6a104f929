"""The exits' losses together: weights, and what earlier exits learn from the last."""

from pathlib import Path

import pytest
import torch

from msmlp.model.errors import ConfigError
from msmlp.model.training.losses import cascade_loss, divergence, exit_loss
from msmlp.model.training.recipes import Recipe, TrainOptions
from msmlp.model.training.trainer import train

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
    with pytest.raises(ConfigError, match="exit_weights: must be numbers of at least 0, one of them above"):
        train(TrainOptions(Path("nowhere"), "tiny", Path("nowhere"), changes=changes))
