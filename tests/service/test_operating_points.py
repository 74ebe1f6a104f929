"""Options to operating points: by name, by budget, by accuracy, under exit bounds and brown-out."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.errors import OptionError
from msmlp.model.exits.rule import exit_of
from msmlp.model.weights import Calibration, OperatingPoint
from msmlp.model.weights.calibration import CalibrationFile, expectation
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.operating_points import Plan, Policy
from msmlp.service.options import RequestOptions

GFLOPS = [0.1, 0.3, 1.0]
THRESHOLDS = {"fast": (0.2, 0.2), "balanced": (0.6, 0.5), "accurate": (0.9, 0.8)}


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    return np.random.default_rng(5).random((400, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def correct(scores: np.ndarray) -> np.ndarray:
    """Deeper is better, and the surer the likelier."""
    return np.random.default_rng(6).random(scores.shape) < np.array([0.5, 0.7, 0.9]) * (0.5 + scores / 2) + 0.1


def made_of(points: list[OperatingPoint], scores: np.ndarray, correct: np.ndarray, gflops: list[float]) -> Calibration:
    file = CalibrationFile(
        format=1,
        model_sha256="0",
        exit_policy="max-probability",
        temperatures=(1.0,) * len(gflops),
        operating_points=tuple(points),
        images=len(scores),
        digest="0",
        device="cpu",
        files={},
    )
    return Calibration(file, scores, correct, np.array(gflops), "0")


def a_point(name: str, thresholds: tuple[float, ...], accuracy: float, gflops: float) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        thresholds=thresholds,
        expected_accuracy=accuracy,
        standard_error=0.01,
        mean_gflops=gflops,
        exit_share=(1.0,),
        solver="by hand",
    )


@pytest.fixture(scope="module")
def calibration(scores: np.ndarray, correct: np.ndarray) -> Calibration:
    points = []
    for name, thresholds in THRESHOLDS.items():
        got = expectation(scores, correct, np.array(GFLOPS), np.array(thresholds))
        points.append(a_point(name, thresholds, got.accuracy, got.mean_gflops))
    return made_of(points, scores, correct, GFLOPS)


@pytest.fixture(scope="module")
def policy(calibration: Calibration) -> Policy:
    return Policy(calibration, GFLOPS, "balanced")


@pytest.fixture(scope="module")
def point(calibration: Calibration) -> Callable[[str], OperatingPoint]:
    return lambda name: next(p for p in calibration.points if p.name == name)


def test_no_selector_is_the_default(policy: Policy) -> None:
    plan = policy.plan(RequestOptions())
    assert (plan.name, plan.source) == ("balanced", "default")
    assert tuple(plan.thresholds) == THRESHOLDS["balanced"]
    assert (plan.min_exit, plan.max_exit) == (0, 3)
    bounded = policy.plan(RequestOptions(min_exit=2, top_k=3))
    assert (bounded.name, bounded.source) == ("balanced", "default")


def test_a_policy_by_name(policy: Policy, point: Callable[[str], OperatingPoint]) -> None:
    for name, thresholds in THRESHOLDS.items():
        plan = policy.plan(RequestOptions(policy=name))
        assert (plan.name, plan.source, tuple(plan.thresholds)) == (name, "request", thresholds)
        assert plan.expected_accuracy == pytest.approx(point(name).expected_accuracy)
        assert plan.expected_gflops == pytest.approx(point(name).mean_gflops)


def test_an_unknown_policy_lists_the_known_ones(policy: Policy, calibration: Calibration) -> None:
    with pytest.raises(OptionError, match="'best' is no operating point; allowed: fast, balanced, accurate"):
        policy.plan(RequestOptions(policy="best"))
    with pytest.raises(OptionError, match="'best' is no operating point; there are fast, balanced, accurate"):
        Policy(calibration, GFLOPS, "best")


def test_explicit_thresholds_have_no_name_and_their_own_expectation(
    policy: Policy, scores: np.ndarray, correct: np.ndarray
) -> None:
    plan = policy.plan(RequestOptions(thresholds=(0.7, 0.1)))
    assert (plan.name, plan.source, plan.thresholds.tolist()) == (None, "request", [0.7, 0.1])
    left = exit_of(scores, np.array([0.7, 0.1])) - 1
    assert plan.expected_gflops == pytest.approx(np.array(GFLOPS)[left].mean())
    assert plan.expected_accuracy == pytest.approx(correct[np.arange(len(left)), left].mean())


@pytest.mark.parametrize("thresholds", [(), (0.5,), (0.5, 0.5, 0.5)])
def test_the_number_of_thresholds_is_checked(policy: Policy, thresholds: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match=f"{len(thresholds)} numbers given, allowed: 2"):
        policy.plan(RequestOptions(thresholds=thresholds))


def test_a_budget_takes_the_best_point_within_it(policy: Policy, point: Callable[[str], OperatingPoint]) -> None:
    costs = [point(name).mean_gflops for name in THRESHOLDS]
    assert costs == sorted(costs)
    for name, cost in zip(THRESHOLDS, costs, strict=True):
        assert policy.plan(RequestOptions(budget_gflops=cost)).name == name
        assert policy.plan(RequestOptions(budget_gflops=cost * 1.0001)).name == name
    assert policy.plan(RequestOptions(budget_gflops=float("inf"))).name == "accurate"
    with pytest.raises(OptionError, match=f"allowed: {costs[0]:.6f} or more"):
        policy.plan(RequestOptions(budget_gflops=costs[0] * 0.999))


def test_a_risk_controlled_point_is_taken_by_name_alone(scores: np.ndarray, correct: np.ndarray) -> None:
    """However good it looks: its accuracy comes from fewer images."""
    lucky = a_point("risk-0.01", (0.5, 0.5), 0.9, 0.3).model_copy(update={"risk": 0.01, "confidence": 0.95})
    points = [a_point("cheap", (0.1, 0.1), 0.6, 0.2), lucky, a_point("good", (0.9, 0.9), 0.8, 0.4)]
    policy = Policy(made_of(points, scores, correct, GFLOPS), GFLOPS, "good")
    assert policy.plan(RequestOptions(policy="risk-0.01")).name == "risk-0.01"
    assert policy.plan(RequestOptions(budget_gflops=0.35)).name == "cheap"
    assert policy.plan(RequestOptions(budget_gflops=1.0)).name == "good"
    assert policy.plan(RequestOptions(min_accuracy=0.7)).name == "good"
    for floor in ("min_accuracy", "accuracy_floor"):
        with pytest.raises(OptionError, match=r"allowed: 0 to 0\.8000"):
            policy.plan(RequestOptions(**{floor: 0.85}))
    # Brown-out passes it by, and takes it away unless told not to.
    assert {policy.plan(RequestOptions(), level).name for level in range(LEVELS + 1)} == {"good", "cheap"}
    assert policy.plan(RequestOptions(policy="risk-0.01"), LEVELS).name == "cheap"
    assert policy.plan(RequestOptions(policy="risk-0.01", degrade=False), LEVELS).name == "risk-0.01"
    alone = Policy(made_of([lucky], scores, correct, GFLOPS), GFLOPS, "risk-0.01")
    assert alone.plan(RequestOptions(budget_gflops=0.35), LEVELS).name == "risk-0.01"


def test_a_dearer_point_that_is_worse_is_never_chosen(scores: np.ndarray, correct: np.ndarray) -> None:
    """A calibration by hand may hold one."""
    points = [
        a_point(name, (0.5, 0.5), accuracy, cost)
        for name, accuracy, cost in [("bad", 0.5, 0.9), ("good", 0.8, 0.4), ("cheap", 0.6, 0.2)]
    ]
    policy = Policy(made_of(points, scores, correct, GFLOPS), GFLOPS, "good")
    assert policy.plan(RequestOptions(budget_gflops=1.0)).name == "good"
    assert policy.plan(RequestOptions(min_accuracy=0.4)).name == "cheap"


def test_an_accuracy_takes_the_cheapest_point_that_reaches_it(
    policy: Policy, point: Callable[[str], OperatingPoint]
) -> None:
    accuracies = [point(name).expected_accuracy for name in THRESHOLDS]
    assert accuracies == sorted(accuracies)
    assert policy.plan(RequestOptions(min_accuracy=0.0)).name == "fast"
    for name, accuracy in zip(THRESHOLDS, accuracies, strict=True):
        assert policy.plan(RequestOptions(min_accuracy=accuracy)).name == name
    with pytest.raises(OptionError, match=f"allowed: 0 to {accuracies[-1]:.4f}"):
        policy.plan(RequestOptions(min_accuracy=1.0))


def test_exit_bounds(policy: Policy, scores: np.ndarray) -> None:
    plan = policy.plan(RequestOptions(min_exit=2, max_exit=2))
    assert (plan.min_exit, plan.max_exit) == (2, 2)
    assert plan.expected_gflops == pytest.approx(0.3), "the expectation is under the bounds"
    for options, allowed in [
        (RequestOptions(min_exit=4), "1 to 3"),
        (RequestOptions(max_exit=4), "1 to 3"),
        (RequestOptions(min_exit=3, max_exit=2), "above the last exit; allowed: 1 to 2"),
    ]:
        with pytest.raises(OptionError, match=allowed):
            policy.plan(options)


def test_a_hard_cap_is_an_exit_bound(policy: Policy) -> None:
    assert policy.plan(RequestOptions(max_gflops=0.1)).max_exit == 1
    assert policy.plan(RequestOptions(max_gflops=0.299)).max_exit == 1
    assert policy.plan(RequestOptions(max_gflops=0.3)).max_exit == 2
    assert policy.plan(RequestOptions(max_gflops=5.0)).max_exit == 3
    assert policy.plan(RequestOptions(max_gflops=5.0, max_exit=1)).max_exit == 1
    with pytest.raises(OptionError, match=r"max_gflops: .*allowed: 0\.100000 or more"):
        policy.plan(RequestOptions(max_gflops=0.09))
    with pytest.raises(OptionError, match="min_exit"):
        policy.plan(RequestOptions(max_gflops=0.2, min_exit=2))


def test_one_exit_needs_no_thresholds() -> None:
    scores, correct = np.ones((4, 1), np.float32), np.ones((4, 1), dtype=bool)
    calibration = made_of([a_point("fast", (), 1.0, 0.1)], scores, correct, [0.1])
    policy = Policy(calibration, [0.1], "fast")
    assert policy.plan(RequestOptions(thresholds=())).thresholds.tolist() == []
    assert policy.plan(RequestOptions()).max_exit == 1


def browned(policy: Policy, /, **options: Any) -> list[Plan]:
    """The plan at every brown-out level."""
    return [policy.plan(RequestOptions(**options), level) for level in range(LEVELS + 1)]


def test_brown_out_walks_to_ever_cheaper_points_and_says_so(policy: Policy) -> None:
    for options in ({}, {"policy": "accurate"}, {"budget_gflops": 5.0}):
        plans = browned(policy, **options)
        costs = [plan.expected_gflops for plan in plans]
        assert costs == sorted(costs, reverse=True)
        assert plans[-1].name == "fast"
        for plan in plans:
            degraded = plan.expected_gflops < plans[0].expected_gflops
            assert (plan.source == "brownout") == degraded
            assert tuple(plan.thresholds) == THRESHOLDS[str(plan.name)]
    assert {plan.source for plan in browned(policy, policy="fast")} == {"request"}, "there is nothing cheaper"


def test_costs_are_those_of_a_request_without_options(policy: Policy) -> None:
    assert policy.costs() == tuple(plan.expected_gflops for plan in browned(policy))


def test_a_level_is_a_share_of_the_way_to_the_cheapest(scores: np.ndarray, correct: np.ndarray) -> None:
    points = [a_point(f"p{i}", (i / 10, 0.5), 0.5 + i / 20, (1 + i) / 8) for i in range(9)]
    policy = Policy(made_of(points, scores, correct, GFLOPS), GFLOPS, "p8")
    assert [plan.name for plan in browned(policy)] == [f"p{i}" for i in range(8, -1, -1)]
    assert [plan.name for plan in browned(policy, policy="p4")] == ["p4", *(f"p{i}" for i in (3, 3, 2, 2, 1, 1, 0, 0))]


def test_brown_out_never_changes_explicit_thresholds_nor_who_refuses(policy: Policy) -> None:
    for options in ({"thresholds": (0.9, 0.8)}, {"degrade": False}, {"policy": "accurate", "degrade": False}):
        plans = browned(policy, **options)
        assert {(tuple(plan.thresholds), plan.source) for plan in plans} == {
            (tuple(plans[0].thresholds), plans[0].source)
        }
    assert browned(policy, degrade=True)[-1].source == "brownout"


def test_brown_out_stays_at_the_floor(policy: Policy, point: Callable[[str], OperatingPoint]) -> None:
    balanced = point("balanced").expected_accuracy
    plans = browned(policy, policy="accurate", accuracy_floor=balanced)
    assert {plan.name for plan in plans} == {"accurate", "balanced"}, "the floor itself may be reached"
    plans = browned(policy, policy="accurate", accuracy_floor=balanced + 1e-9)
    assert {(plan.name, plan.source) for plan in plans} == {("accurate", "request")}
    assert browned(policy, policy="accurate", accuracy_floor=0.0)[-1].name == "fast"


def test_a_floor_does_not_raise_a_point_that_is_below_it(
    policy: Policy, point: Callable[[str], OperatingPoint]
) -> None:
    plans = browned(policy, accuracy_floor=point("accurate").expected_accuracy)
    assert {(plan.name, plan.source) for plan in plans} == {("balanced", "default")}


def test_min_accuracy_is_a_floor(scores: np.ndarray, correct: np.ndarray) -> None:
    """The cheapest point that reaches it may be chosen, and nothing beneath; a floor besides may only raise it."""
    points = [a_point(f"p{i}", (i / 10, 0.5), 0.5 + i / 20, (1 + i) / 8) for i in range(9)]
    policy = Policy(made_of(points, scores, correct, GFLOPS), GFLOPS, "p8")
    assert {plan.name for plan in browned(policy, min_accuracy=0.74)} == {"p5"}


def test_the_floors_range_is_named(policy: Policy, point: Callable[[str], OperatingPoint]) -> None:
    most = point("accurate").expected_accuracy
    policy.plan(RequestOptions(accuracy_floor=most))
    with pytest.raises(OptionError, match=r"accuracy_floor: nothing is expected to reach it; allowed: 0 to 0\.\d{4}"):
        policy.plan(RequestOptions(accuracy_floor=np.nextafter(most, 1)))


@st.composite
def policies(draw: st.DrawFn, scores: np.ndarray, correct: np.ndarray) -> Policy:
    """Operating points in any order, some dominated, costs and accuracies with all their digits."""
    points = [
        a_point(f"p{i}", draw(st.tuples(fractions, fractions)), draw(fractions), draw(st.floats(1e-4, 2.0)))
        for i in range(draw(st.integers(1, 6)))
    ]
    return Policy(made_of(points, scores, correct, GFLOPS), GFLOPS, points[-1].name)


fractions = st.floats(0, 1)
bounds = st.sampled_from([{}, {"min_exit": 2}, {"max_exit": 1}, {"max_exit": 2}, {"min_exit": 2, "max_exit": 2}])


def reach(policy: Policy, bounds: dict[str, int]) -> list[Plan]:
    return [policy.plan(RequestOptions(policy=point.name, **bounds)) for point in policy._calibration.points]


@given(st.data())
def test_whatever_can_be_met_is_and_more_budget_is_never_worse(
    scores: np.ndarray, correct: np.ndarray, data: st.DataObject
) -> None:
    policy, within = data.draw(policies(scores, correct)), data.draw(bounds)
    offers = reach(policy, within)
    least, most = min(p.expected_gflops for p in offers), max(p.expected_accuracy for p in offers)
    costs = [p.expected_gflops for p in offers]
    budgets = sorted(data.draw(st.lists(st.floats(0, 2.5) | st.sampled_from(costs), min_size=2, max_size=5)))
    best = -1.0
    for budget in budgets:
        if budget < least:
            refused(policy, "budget_gflops", budget, within, at_least=least)
            continue
        plan = policy.plan(RequestOptions(budget_gflops=budget, **within))
        assert plan.expected_gflops <= budget
        assert plan.expected_accuracy == max(p.expected_accuracy for p in offers if p.expected_gflops <= budget) >= best
        best = plan.expected_accuracy
    wanted = data.draw(fractions | st.sampled_from([p.expected_accuracy for p in offers]))
    for name in ("min_accuracy", "accuracy_floor"):
        if wanted > most:
            refused(policy, name, wanted, within, at_most=most)
        else:
            plan = policy.plan(RequestOptions(**{name: wanted}, **within))
            if name == "min_accuracy":
                assert plan.expected_accuracy >= wanted
                assert plan.expected_gflops == min(p.expected_gflops for p in offers if p.expected_accuracy >= wanted)


def refused(
    policy: Policy, name: str, value: float, within: dict[str, int], *, at_least: float = 0.0, at_most: float = 1.0
) -> None:
    """It is refused, and the bound that is named is allowed, and close."""
    with pytest.raises(OptionError, match=f"^{name}: .*; allowed: ") as caught:
        policy.plan(RequestOptions(**{name: value}, **within))
    words = str(caught.value)
    named = float(words.removesuffix(" or more").split()[-1])
    policy.plan(RequestOptions(**{name: named}, **within))
    assert 0 <= named - at_least <= 1.01e-6 if at_least else 0 <= at_most - named <= 1.01e-4


@given(st.data())
def test_brown_out_keeps_every_promise(scores: np.ndarray, correct: np.ndarray, data: st.DataObject) -> None:
    policy, within = data.draw(policies(scores, correct)), data.draw(bounds)
    offers = reach(policy, within)
    most = max(p.expected_accuracy for p in offers)
    floor = data.draw(st.floats(0, most))
    selector = data.draw(st.sampled_from([{}, {"min_accuracy": floor}, {"accuracy_floor": floor}]))
    plans = browned(policy, **selector, **within)
    calm = plans[0]
    for before, plan in itertools.pairwise(plans):
        assert plan.expected_gflops <= before.expected_gflops or plan.expected_accuracy >= before.expected_accuracy
    for plan in plans:
        assert plan.expected_gflops <= calm.expected_gflops
        assert (plan.source == "brownout") == (plan.expected_gflops < calm.expected_gflops)
        if selector and calm.expected_accuracy >= floor:
            assert plan.expected_accuracy >= floor
    cheapest = min(p.expected_gflops for p in offers if not selector or p.expected_accuracy >= floor)
    if not selector or calm.expected_accuracy >= floor:
        assert plans[-1].expected_gflops == min(cheapest, calm.expected_gflops)


def test_what_is_named_is_allowed_where_binary_products_round_the_other_way(
    scores: np.ndarray, correct: np.ndarray
) -> None:
    cost = float(np.nextafter(0.141, 1))
    assert cost * 1e6 == 0.141 * 1e6, "in binary the product does not tell them apart"
    policy = Policy(made_of([a_point("only", (0.5, 0.5), 0.9, cost)], scores, correct, GFLOPS), GFLOPS, "only")
    refused(policy, "budget_gflops", 0.1, {}, at_least=cost)
