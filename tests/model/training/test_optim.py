"""The learning rate at every step, and what each optimizer does with it."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.loop import Arrays, Learner, exit_accuracies, train_epoch
from msmlp.model.training.optim import Optimizers, lr_factor
from msmlp.model.training.recipes import RECIPES, TEACHERS, Recipe
from msmlp.model.training.step import step_scalars


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1), (149.99, 1), (150, 0.1), (224.99, 0.1), (225, 0.01), (299.99, 0.01)],
)
def test_the_papers_steps(epoch: float, factor: float) -> None:
    assert lr_factor(RECIPES["paper"], epoch) == pytest.approx(factor)


def test_the_steps_move_with_the_number_of_epochs() -> None:
    short = RECIPES["paper"].model_copy(update={"epochs": 20})
    assert [lr_factor(short, epoch) for epoch in (9.9, 10, 14.9, 15)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_warm_up_then_cosine() -> None:
    best = RECIPES["best"]  # 10 epochs up, 290 down
    assert lr_factor(best, 0) < 0.01
    assert lr_factor(best, 5) == pytest.approx(0.5, abs=0.01)
    assert lr_factor(best, 10) == pytest.approx(1, abs=0.01)
    assert lr_factor(best, 155) == pytest.approx(0.5, abs=0.01)
    assert lr_factor(best, 300) < 0.01


def test_a_short_run_warms_up_for_a_fifth_of_it_at_most() -> None:
    short = RECIPES["best"].model_copy(update={"epochs": 10})  # the recipe's 10 epochs up would be all of it
    assert lr_factor(short, 1) == pytest.approx(0.5, abs=0.01)
    assert lr_factor(short, 2) == pytest.approx(1, abs=0.01)
    assert lr_factor(short, 6) == pytest.approx(0.5, abs=0.01)


def test_up_then_stable_then_down() -> None:
    steady = RECIPES["best"].model_copy(update={"schedule": "wsd", "epochs": 100, "decay_share": 0.2})
    assert [lr_factor(steady, epoch) for epoch in (5, 10, 79.9, 80)] == pytest.approx([0.5, 1, 1, 1], abs=0.01)
    assert [lr_factor(steady, epoch) for epoch in (85, 96.2, 100)] == pytest.approx([0.5, 0.1, 0])


def test_the_stable_part_does_not_depend_on_the_length() -> None:
    steady = RECIPES["distill"].model_copy(update={"schedule": "wsd", "epochs": 20})
    longer = steady.model_copy(update={"epochs": 700})
    for epoch in range(steady.decay_begins):
        assert lr_factor(steady, epoch) == lr_factor(longer, epoch)
        assert steady.distills_features(epoch)
        assert longer.distills_features(epoch)
    assert not steady.distills_features(steady.decay_begins)


@given(st.sampled_from(sorted(RECIPES)), st.integers(1, 400), st.floats(0, 20), st.floats(0, 1))
def test_the_rate_is_always_positive_and_at_most_the_peak(name: str, epochs: int, warmup: float, share: float) -> None:
    made = RECIPES[name].model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
    assert 0 < lr_factor(made, share * epochs) <= 1.002


def test_every_step_uses_its_own_rate() -> None:
    """SGD with a gradient of 1 moves by the learning rate, so the weight shows the schedule."""
    recipe = Recipe(
        epochs=4, batch_size=1, optimizer="sgd", lr=8, momentum=0, weight_decay=0, schedule="step", augment="none"
    )
    model = nn.Linear(1, 1, bias=False)
    optimizers = Optimizers(model, recipe)
    moves = []
    for step in range(8):
        before = model.weight.item()
        model.weight.grad = torch.ones(1, 1)
        optimizers.step(step_scalars(recipe, step // 2, 2)[step % 2, 0])
        moves.append(before - model.weight.item())
    assert moves == pytest.approx([8, 8, 8, 8, 0.8, 0.8, 0.08, 0.08], rel=1e-3)


def test_gradients_are_forgotten(plain: Recipe) -> None:
    model = nn.Linear(2, 2)
    optimizers = Optimizers(model, plain)
    model(torch.ones(1, 2)).sum().backward()
    optimizers.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


OPTIMIZERS = {"sgd": 0.05, "adamw": 0.01, "muon": 0.01}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_trains(kind: str, plain: Recipe, learner: Callable[[Recipe], Learner], arrays: Arrays) -> None:
    made = learner(plain.model_copy(update={"optimizer": kind, "lr": OPTIMIZERS[kind], "epochs": 25}))
    start = {name: value.clone() for name, value in made.model.named_parameters()}
    losses = [train_epoch(made, arrays, epoch, lambda *_: None)[0] for epoch in range(25)]
    assert losses[-1] < 0.5 * losses[0]
    assert min(exit_accuracies(made, arrays)) > 0.9
    still = [name for name, value in made.model.named_parameters() if torch.equal(value, start[name])]
    assert still == []


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_shrinks_matrices_and_leaves_norms_and_biases(
    kind: str, plain: Recipe, learner: Callable[[Recipe], Learner]
) -> None:
    made = learner(plain.model_copy(update={"optimizer": kind, "lr": 0.1, "weight_decay": 0.5}))
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    made.optimizers.step(torch.tensor(1.0))
    for name, parameter in made.model.named_parameters():
        expected = 1.0 if parameter.dim() == 1 else 1 - 0.1 * 0.5
        assert torch.allclose(parameter, torch.tensor(expected)), name


@pytest.mark.parametrize("capturable", [False, True])
def test_the_biases_of_norms_learn_faster(
    capturable: bool, plain: Recipe, learner: Callable[[Recipe], Learner]
) -> None:
    recipe = plain.model_copy(update={"lr": 0.01, "momentum": 0, "bias_lr": 16, "weight_decay": 0.5})
    made = learner(recipe)
    optimizers = Optimizers(made.model, recipe)
    optimizers.capturable = capturable  # the same steps, taken as a GPU takes them
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.ones_like(parameter)
    optimizers.step(torch.tensor(0.5))
    for name, parameter in made.model.named_parameters():
        rate, decay = (0.16, 0.5 / 16) if name.endswith("norm.bias") else (0.01, 0.5)
        assert torch.allclose(parameter, torch.tensor(1 - 0.5 * rate * (1 + decay))), name


@pytest.mark.parametrize("name", ["teacher-tiny", "teacher-resnet18"])
def test_all_norms_of_a_teacher_have_faster_biases(name: str, plain: Recipe) -> None:
    model = ConvNet(TEACHERS[name])
    [optimizer] = Optimizers(model, plain.model_copy(update={"bias_lr": 16})).parts
    found = {id(p) for p in optimizer.param_groups[1]["params"]}
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert found == {id(norm.bias) for norm in norms}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_comes_back(kind: str, plain: Recipe, learner: Callable[[Recipe], Learner], arrays: Arrays) -> None:
    recipe = plain.model_copy(update={"optimizer": kind, "lr": OPTIMIZERS[kind]})
    first, second = learner(recipe), learner(recipe)
    torch.manual_seed(1)
    train_epoch(first, arrays, 0, lambda *_: None)
    second.model.load_state_dict(first.model.state_dict())
    # torch shares its buffers; what comes from a file is a copy.
    second.optimizers.load_state_dict(deepcopy(first.optimizers.state_dict()))
    for made in (first, second):
        torch.manual_seed(2)
        train_epoch(made, arrays, 1, lambda *_: None)
    states = [made.model.state_dict() for made in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
