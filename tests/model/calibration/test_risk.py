"""Risk control: the p-values against exact sums, and the guarantee on many draws from a population that is known."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.calibration import risk as risk_module
from msmlp.model.calibration.frontier import risk_point
from msmlp.model.calibration.risk import (
    RiskLimit,
    binomial_cdf,
    hoeffding_bentkus,
    risk_controlled,
    risk_limit,
    safe_prefix,
)
from msmlp.model.calibration.solvers import Thresholds
from msmlp.model.errors import OptionError
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights.calibration import Table
from tests.model.calibration.tables import over_many_tables

CHANCES = st.floats(1e-3, 1 - 1e-3)


def exact_cdf(trials: int, chance: Fraction) -> list[float]:
    """P(Binomial <= k) for k = 0...trials, in fractions."""
    terms = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    return [float(sum(terms[: k + 1])) for k in range(trials + 1)]


@pytest.mark.parametrize("trials", [1, 2, 7, 60])
@pytest.mark.parametrize("chance", [Fraction(1, 100), Fraction(1, 3), Fraction(19, 20)])
def test_the_binomial_cdf_is_the_exact_sum(trials: int, chance: Fraction) -> None:
    got = [binomial_cdf(k, trials, float(chance)) for k in range(trials + 1)]
    assert got == pytest.approx(exact_cdf(trials, chance), rel=1e-9)
    assert binomial_cdf(-1, trials, float(chance)) == 0
    assert binomial_cdf(trials + 1, trials, float(chance)) == 1


def test_the_binomial_cdf_of_many_trials_neither_overflows_nor_drifts() -> None:
    # By symmetry P(X <= n / 2) = (1 + P(X = n / 2)) / 2, where P(X = n / 2) = 1 / sqrt(pi n / 2) * (1 - 1 / 4n + ...).
    trials = 50_000
    middle = (1 - 1 / (4 * trials)) / math.sqrt(math.pi * trials / 2)
    assert binomial_cdf(trials // 2, trials, 0.5) == pytest.approx((1 + middle) / 2, abs=1e-9)
    assert binomial_cdf(0, trials, 0.01) == pytest.approx(0.99**trials, rel=1e-6)


@given(st.integers(1, 80), st.floats(0, 1), st.floats(0, 1), CHANCES, CHANCES)
def test_a_p_value_rises_with_the_loss_and_falls_with_the_risk(
    images: int, one: float, other: float, risk: float, larger: float
) -> None:
    small, large = sorted((one * images, other * images))
    risk, larger = sorted((risk, larger))
    p = hoeffding_bentkus(small, images, risk)
    assert 0 <= p <= 1
    assert p <= hoeffding_bentkus(large, images, risk) + 1e-12
    assert hoeffding_bentkus(small, images, larger) <= p + 1e-12
    # The losses seen at the limit or above it are no evidence that the risk is below it.
    assert hoeffding_bentkus(images * larger, images, risk) == pytest.approx(1)


@pytest.mark.parametrize("images", [1, 3, 20, 75, 200])
@pytest.mark.parametrize("risk", [Fraction(1, 100), Fraction(1, 20), Fraction(1, 4), Fraction(3, 5)])
def test_where_the_risk_is_above_the_limit_a_p_value_is_seldom_small(images: int, risk: Fraction) -> None:
    """P(p <= a) <= a for every a, by summing over all outcomes: it need be looked at where a is a p-value itself."""
    p = [hoeffding_bentkus(k, images, float(risk)) for k in range(images + 1)]
    assert p == sorted(p)
    for truth in (risk, risk * Fraction(11, 10), risk + (1 - risk) / 2):
        below = exact_cdf(images, truth)
        assert all(below[k] <= p[k] * (1 + 1e-9) for k in range(images + 1))


def test_p_values_are_no_looser_than_either_bound() -> None:
    # By hand: none of 100 lost at a limit of 1/20 is (19/20)^100 by Hoeffding, and e times that by Bentkus.
    assert hoeffding_bentkus(0, 100, 0.05) == pytest.approx(0.95**100)
    bentkus = math.e * exact_cdf(200, Fraction(1, 20))[2]
    assert hoeffding_bentkus(2, 200, 0.05) == pytest.approx(bentkus)
    assert hoeffding_bentkus(0, 0, 0.05) == 1


def test_the_walk_ends_at_the_first_that_is_not_certified() -> None:
    limit = RiskLimit(0.05, 0.95)
    assert hoeffding_bentkus(3, 200, 0.05) <= 0.05 < hoeffding_bentkus(4, 200, 0.05)
    assert safe_prefix([0, 2, 3, 4, 0, 0], 200, limit) == 3
    assert safe_prefix([0, 3], 200, limit) == 2
    assert safe_prefix([4, 0], 200, limit) == 0
    assert safe_prefix([], 200, limit) == 0


@pytest.mark.parametrize("limit", [RiskLimit(0.01, 0.95), RiskLimit(0.05, 0.99), RiskLimit(0.3, 0.8)])
def test_the_fewest_images_certify_no_loss_and_one_less_does_not(limit: RiskLimit) -> None:
    assert safe_prefix([0], limit.fewest_images, limit) == 1
    assert safe_prefix([0], limit.fewest_images - 1, limit) == 0


def population(exits: int, images: int = 20_000) -> Table:
    """Deeper exits are right more often and on other images; scores tell something of it."""
    rng = np.random.default_rng(2)
    ease = rng.random(images)[:, None]
    skill = np.linspace(0.1, 0.5, exits)
    correct = rng.random((images, exits)) < np.clip(ease + skill, 0, 1)
    scores = np.clip(ease + rng.normal(0, 0.25, (images, exits)), 0, 1)
    return Table(scores.astype(np.float32), correct, np.arange(1.0, exits + 1))


def loss_of(table: Table, thresholds: Thresholds) -> float:
    left = exit_of(table.scores, np.array(thresholds)) - 1
    return float((table.correct[:, -1] & ~table.correct[np.arange(len(left)), left]).mean())


def violations(everyone: Table, limit: RiskLimit, draws: int, images: int) -> int:
    """How many of `draws` sets of images lead to thresholds whose true loss is above the limit."""
    rng, halves, broken = np.random.default_rng(3), np.arange(images) % 2, 0
    for _ in range(draws):
        drawn = rng.integers(0, len(everyone.scores), images)
        table = Table(everyone.scores[drawn], everyone.correct[drawn], everyone.costs)
        broken += loss_of(everyone, risk_controlled(table, halves, limit)) > limit.risk
    return broken


def seen_is_believed(loss: float, images: int, risk: float) -> float:
    """No bound at all: certified when the images at hand lose no more than the limit."""
    return float(loss / images > risk)


DRAWS = 300
LIMIT = RiskLimit(0.05, 0.9)
MOST = DRAWS * 0.1 + 3 * math.sqrt(DRAWS * 0.1 * 0.9)
"""Violations in 300 draws that a probability of 0.1 explains: three standard errors above the mean, 45.6."""


@pytest.mark.parametrize("exits", [2, 3])
def test_the_guarantee_holds_over_many_draws(exits: int) -> None:
    assert violations(population(exits), LIMIT, DRAWS, 500) <= MOST


@pytest.mark.parametrize("exits", [2, 3])
def test_without_the_bound_the_same_draws_break_it(monkeypatch: pytest.MonkeyPatch, exits: int) -> None:
    monkeypatch.setattr(risk_module, "hoeffding_bentkus", seen_is_believed)
    assert violations(population(exits), LIMIT, DRAWS, 500) > MOST


@pytest.mark.parametrize("limit", [RiskLimit(0.02, 0.95), RiskLimit(0.1, 0.95)])
def test_a_guarantee_is_worth_having(limit: RiskLimit) -> None:
    """With many images it spends far less than the last exit and uses up most of what may be lost."""
    everyone = population(3)
    thresholds = risk_controlled(everyone, np.arange(len(everyone.scores)) % 2, limit)
    got = everyone.expect(thresholds)
    assert got.mean_cost < 2.8
    assert 0.6 * limit.risk < loss_of(everyone, thresholds) <= limit.risk


def test_more_may_be_lost_for_less() -> None:
    everyone = population(3)
    halves = np.arange(len(everyone.scores)) % 2
    points = [risk_point(everyone, halves, RiskLimit(r, 0.95), everyone.costs) for r in (0.01, 0.03, 0.1, 0.9)]
    costs = [point.mean_gflops for point in points]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 4
    assert costs[-1] == 1


def test_the_half_that_tests_has_no_say_in_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Table] = []

    def remember(table: Table) -> list[object]:
        tried.append(table)
        return []

    monkeypatch.setattr(risk_module, "joint_frontier", remember)
    monkeypatch.setattr(risk_module, "thinned", lambda frontier: frontier)
    table = population(3, 40)
    halves = np.arange(40) % 2
    risk_controlled(table, halves, LIMIT)
    table.correct[halves == 1] ^= True
    risk_controlled(table, halves, LIMIT)
    assert (tried[0].correct == tried[1].correct).all()
    assert len(tried[0].scores) == 20


def test_the_other_half_alone_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], int]] = []

    def remember(lost: list[int], images: int, limit: RiskLimit) -> int:
        seen.append((lost, images))
        return len(lost)

    monkeypatch.setattr(risk_module, "safe_prefix", remember)
    table = population(3, 1000)
    halves = (np.arange(1000) % 5 > 1).astype(np.int64)
    loosest = risk_controlled(table, halves, LIMIT)
    [(lost, images)] = seen
    assert images == 600
    assert loosest == (0.0, 0.0)
    assert lost[-1] == round(600 * loss_of(table.take(halves == 1), loosest)) > 100


@over_many_tables
def test_the_point_says_what_it_is_measured_on(measured: Table) -> None:
    halves = np.arange(len(measured.scores)) % 2
    point = risk_point(measured, halves, RiskLimit(0.2, 0.8), measured.costs, 2 * measured.costs)
    assert (point.name, point.risk, point.confidence) == ("risk-0.2", 0.2, 0.8)
    assert len(point.thresholds) == measured.exits - 1
    everywhere = measured.expect(point.thresholds)
    assert (point.mean_gflops, point.exit_share) == (everywhere.mean_cost, everywhere.exit_share)
    assert point.mean_ms == pytest.approx(2 * point.mean_gflops)
    test = measured if len(halves) == 1 else measured.take(halves == 1)
    held_out = test.expect(point.thresholds)
    assert (point.expected_accuracy, point.standard_error) == (held_out.accuracy, held_out.standard_error)


@pytest.mark.parametrize("images", [1, 2, 30])
def test_too_few_images_never_exit_early(images: int) -> None:
    table = population(3, images)
    assert risk_controlled(table, np.arange(images) % 2, RiskLimit(0.01, 0.95)) == (1.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match=r"--risk: .* expected above 0 and below 1"):
        risk_limit(value, None)
    with pytest.raises(OptionError, match=r"--confidence: .* expected above 0 and below 1"):
        risk_limit(0.1, value)


@pytest.mark.parametrize("value", [1e-320, 1e-10])
def test_a_risk_that_no_number_of_images_certifies_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match=r"--risk: .* is too small; expected 1e-09 or more"):
        risk_limit(value, None)


def test_a_confidence_needs_a_risk_and_a_risk_has_a_confidence() -> None:
    with pytest.raises(OptionError, match=r"--confidence: needs --risk"):
        risk_limit(None, 0.9)
    assert risk_limit(None, None) is None
    assert risk_limit(0.01, None) == RiskLimit(0.01, 0.95)
    names = [RiskLimit(risk, 0.9).name for risk in (0.01, 0.1, 0.00001, 0.125)]
    assert names == ["risk-0.01", "risk-0.1", "risk-1e-05", "risk-0.125"]
