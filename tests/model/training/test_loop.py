from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from msmlp.model.errors import TrainingStoppedError
from msmlp.model.training.loop import (
    CHECK_EVERY,
    Arrays,
    Learner,
    exit_accuracies,
    steps_per_epoch,
    train_epoch,
)
from msmlp.model.training.recipes import Recipe

Build = Callable[[Recipe], Learner]


def ignore(images: int, loss: float) -> None:
    """A tick that does nothing."""


def test_whole_batches_only_but_at_least_one() -> None:
    assert [steps_per_epoch(images, 12) for images in (5, 12, 23, 24, 30)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_plain_sum_over_exits(smoothing: float, plain: Recipe, learner: Build, arrays: Arrays) -> None:
    """Equation 1, on one batch of everything and before the weights have moved."""
    made = learner(plain.model_copy(update={"batch_size": 30, "label_smoothing": smoothing}))
    with torch.no_grad():
        exits = made.model(made.normalize(arrays.pixels.float() / 255))
    expected = sum(F.cross_entropy(z, arrays.labels, label_smoothing=smoothing).item() for z in exits)
    assert len(exits) == 2
    assert train_epoch(made, arrays, 0, ignore)[0] == pytest.approx(expected, rel=1e-5)


def test_an_epoch_sees_every_image_at_most_once_in_whole_batches(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    made = learner(plain)
    seen: list[int] = []
    shapes: list[int] = []
    known = {image.numpy().tobytes(): number for number, image in enumerate(arrays.pixels.float() / 255)}

    def watch(images: torch.Tensor) -> torch.Tensor:
        seen.extend(known[image.numpy().tobytes()] for image in images)
        shapes.append(len(images))
        return (images - 0.5) / 0.25

    orders = []
    for epoch in range(2):
        seen.clear()
        train_epoch(replace(made, normalize=watch), arrays, epoch, ignore)
        assert len(seen) == len(set(seen)) == 24
        orders.append(list(seen))
    assert shapes == [12] * 4
    assert orders[0] != orders[1]


def test_a_set_smaller_than_a_batch_is_one_batch(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    ticks: list[int] = []
    train_epoch(
        learner(plain.model_copy(update={"batch_size": 512})), arrays, 0, lambda images, _: ticks.append(images)
    )
    assert ticks == [30]


def test_ticks_count_every_image(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    ticks: list[int] = []
    train_epoch(learner(plain.model_copy(update={"batch_size": 1})), arrays, 0, lambda images, _: ticks.append(images))
    assert ticks == [CHECK_EVERY, 30 - CHECK_EVERY]


def test_gradients_are_clipped(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    """At a rate of 1 and no momentum, one step moves the weights by the gradient, here of norm 0.01."""
    recipe = plain.model_copy(update={"lr": 1.0, "momentum": 0.0, "batch_size": 30, "clip_norm": 0.01})
    made = learner(recipe)
    before = torch.cat([p.detach().flatten().clone() for p in made.model.parameters()])
    train_epoch(made, arrays, 0, ignore)
    after = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_accuracy_is_the_share_right_at_every_exit(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    made = learner(plain)
    train_epoch(made, arrays, 0, ignore)
    with torch.no_grad():
        exits = made.model.eval()(made.normalize(arrays.pixels.float() / 255))
    expected = [(z.argmax(1) == arrays.labels).float().mean().item() for z in exits]
    for batch in (30, 7):
        assert exit_accuracies(made, arrays, batch) == pytest.approx(expected)


def test_the_average_is_what_is_measured_and_kept(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    averaged = learner(plain.model_copy(update={"lr": 0.3, "ema": 0.9}))
    for epoch in range(3):
        train_epoch(averaged, arrays, epoch, ignore)
    assert averaged.final is averaged.average
    assert not torch.equal(averaged.final.stage(0).head.weight, averaged.model.stage(0).head.weight)
    # The running weights are spoilt; the measure must not notice.
    measured = exit_accuracies(averaged, arrays)
    with torch.no_grad():
        for parameter in averaged.model.parameters():
            parameter.zero_()
    assert exit_accuracies(averaged, arrays) == measured


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops(value: float, plain: Recipe, learner: Build, arrays: Arrays) -> None:
    made = learner(plain)
    with torch.no_grad():
        made.model.stages[0].head.bias[0] = value
    with pytest.raises(TrainingStoppedError, match=r"epoch 3.*smaller --set lr"):
        train_epoch(made, arrays, 2, ignore)


def test_weights_that_overflow_in_the_last_step_are_found_by_validation(
    plain: Recipe, learner: Build, arrays: Arrays
) -> None:
    """The loss of a step is that of the weights before it."""
    made = learner(plain.model_copy(update={"lr": 1e38, "batch_size": 30}))
    train_epoch(made, arrays, 0, ignore)
    with pytest.raises(TrainingStoppedError, match="smaller --set lr"):
        exit_accuracies(made, arrays)
