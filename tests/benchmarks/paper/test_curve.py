"""Weight sets, equal cost and equal accuracy on made-up answers."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.paper.curve import CORRECTED, PAPER, at_cost, even_thresholds, reaching, thresholds_of_sets, weight_sets
from benchmarks.paper.figures import curve
from benchmarks.paper.measure import Result

COSTS = [1.0, 5.0, 21.0]


def test_forty_weight_sets_go_from_the_first_exit_to_the_last() -> None:
    sets = weight_sets(3)
    assert len(sets) == 40
    assert all(each.sum() == pytest.approx(1) for each in sets)
    assert sets[0][0] > 0.95
    assert sets[-1][-1] > 0.94
    assert all(np.diff([each[2] for each in sets]) > 0)


def test_corrected_thresholds_give_the_shares_they_are_asked_for(made_up: Callable[..., Result]) -> None:
    validation = made_up([0.5, 0.6, 0.7]).validation.table(COSTS)
    for shares, thresholds in zip(weight_sets(3), thresholds_of_sets(CORRECTED, validation), strict=True):
        assert validation.expect(thresholds).exit_share == pytest.approx(shares, abs=0.002)


def test_the_even_thresholds_are_near_a_third(made_up: Callable[..., Result]) -> None:
    validation = made_up([0.5, 0.6, 0.7]).validation.table(COSTS)
    assert (validation.scores[:, 0] >= even_thresholds(validation)[0]).mean() == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("cost", [1.0, 3.0, 12.0, 21.0])
def test_the_cascade_at_a_cost_lies_between_the_exits(made_up: Callable[..., Result], cost: float) -> None:
    result = made_up([0.5, 0.6, 0.7], images=4000)
    right = at_cost(result, COSTS, cost)
    assert len(right) == 4000
    ends = [float(result.test.correct[:, k].mean()) for k in (0, 2)]
    assert ends[0] - 1e-9 <= right.mean() <= ends[1] + 1e-9
    if cost == COSTS[0]:
        assert right.mean() == pytest.approx(ends[0])
    # Confident answers are the right ones, so the cascade is as good as its last exit long before it costs as much.
    if cost >= 12:
        assert right.mean() == pytest.approx(ends[1], abs=0.01)


def test_beyond_its_ends_the_curve_is_its_end(made_up: Callable[..., Result]) -> None:
    result = made_up([0.5, 0.6, 0.7])
    assert (at_cost(result, COSTS, 0.1) == result.test.correct[:, 0]).all()
    assert (at_cost(result, COSTS, 99) == at_cost(result, COSTS, 98)).all()


def test_thresholds_come_from_validation_images_alone(made_up: Callable[..., Result]) -> None:
    """If they are far less confident, every test image leaves at exit 1."""
    made = made_up([0.5, 0.6, 0.7])
    result = replace(made, validation=replace(made.validation, scores=made.validation.scores * np.float32(0.1)))
    first = made.test.correct[:, 0].astype(float)
    assert at_cost(result, COSTS, 12.0) == pytest.approx(first)
    assert at_cost(made, COSTS, 12.0).mean() > first.mean() + 0.1
    assert curve([result], PAPER, COSTS) == [(COSTS[0], first.mean())] * 40


def test_a_curve_is_the_mean_over_seeds(made_up: Callable[..., Result]) -> None:
    one, other = made_up([0.5, 0.6, 0.7], 1), made_up([0.3, 0.6, 0.7], 2)
    means = np.array(curve([one, other], CORRECTED, COSTS))
    assert means == pytest.approx((np.array(curve([one], CORRECTED, COSTS)) + curve([other], CORRECTED, COSTS)) / 2)


def test_between_two_settings_the_answers_are_mixed(made_up: Callable[..., Result]) -> None:
    result = made_up([0.5, 0.6, 0.7])
    means = [at_cost(result, COSTS, cost).mean() for cost in np.linspace(1, 3, 200)]
    assert max(np.abs(np.diff(means))) < 0.01
    assert any(0 < value < 1 for value in at_cost(result, COSTS, 1.01))


def test_thresholds_reach_an_accuracy_at_the_least_cost(made_up: Callable[..., Result]) -> None:
    validation = made_up([0.5, 0.6, 0.7]).validation.table(COSTS)
    found = reaching(validation, 0.65)
    assert found.accuracy >= 0.65
    assert found.cost < 10
    assert reaching(validation, 0.99) == reaching(validation, 1.0)
