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
from msmlp.model.weights.calibration import FIXED_EXIT_GAIN, CalibrationFile, Table, fixed_exit
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.operating_points import OperatingPoints, ResolvedPoint, in_words
from msmlp.service.options import RequestOptions

GFLOPS = [0.1, 0.3, 1.0]
THRESHOLDS = {"fast": (0.0, 0.0), "balanced": (0.6, 0.5), "accurate": (1.0, 1.0)}


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
    return Calibration(file, Table(scores, correct, np.array(gflops)), "0")


def by_hand(points: list[OperatingPoint]) -> Calibration:
    """Points with any numbers; every exit alone is always wrong, so nothing chooses one."""
    return made_of(points, np.full((4, 3), 0.5, np.float32), np.zeros((4, 3), dtype=bool), GFLOPS)


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
        got = Table(scores, correct, np.array(GFLOPS)).expect(thresholds)
        points.append(a_point(name, thresholds, got.accuracy, got.mean_cost))
    return made_of(points, scores, correct, GFLOPS)


@pytest.fixture(scope="module")
def table(calibration: Calibration) -> OperatingPoints:
    return OperatingPoints(calibration, GFLOPS, "balanced")


@pytest.fixture(scope="module")
def point(calibration: Calibration) -> Callable[[str], OperatingPoint]:
    return lambda name: next(p for p in calibration.points if p.name == name)


def test_no_selector_is_the_default(table: OperatingPoints) -> None:
    found = table.resolve(RequestOptions())
    assert (found.name, found.source) == ("balanced", "default")
    assert tuple(found.parameters.thresholds) == THRESHOLDS["balanced"]
    assert (found.parameters.min_exit, found.parameters.max_exit) == (0, 3)
    bounded = table.resolve(RequestOptions(min_exit=2, top_k=3))
    assert (bounded.name, bounded.source) == ("balanced", "default")


def test_a_policy_by_name(table: OperatingPoints, point: Callable[[str], OperatingPoint]) -> None:
    for name, thresholds in THRESHOLDS.items():
        found = table.resolve(RequestOptions(policy=name))
        assert (found.name, found.source, tuple(found.parameters.thresholds)) == (name, "request", thresholds)
        assert found.expected_accuracy == pytest.approx(point(name).expected_accuracy)
        assert found.expected_gflops == pytest.approx(point(name).mean_gflops)


def test_an_unknown_policy_lists_the_known_ones(table: OperatingPoints, calibration: Calibration) -> None:
    with pytest.raises(OptionError, match="'best' is not an operating point; expected one of fast, balanced, accurate"):
        table.resolve(RequestOptions(policy="best"))
    with pytest.raises(OptionError, match="'best' is not an operating point; expected one of fast, balanced, accurate"):
        OperatingPoints(calibration, GFLOPS, "best")


def test_numbered_points_are_listed_as_a_range() -> None:
    assert in_words(["p01", "fast", "p03", "risk-5", "p05", "accurate"]) == "fast, risk-5, accurate, p01 to p05"
    assert in_words(["p01", "fast"]) == "fast, p01"


def test_explicit_thresholds_have_no_name_and_their_own_expectation(
    table: OperatingPoints, scores: np.ndarray, correct: np.ndarray
) -> None:
    found = table.resolve(RequestOptions(thresholds=(0.7, 0.1)))
    assert (found.name, found.source, found.parameters.thresholds.tolist()) == (None, "request", [0.7, 0.1])
    left = exit_of(scores, np.array([0.7, 0.1])) - 1
    assert found.expected_gflops == pytest.approx(np.array(GFLOPS)[left].mean())
    assert found.expected_accuracy == pytest.approx(correct[np.arange(len(left)), left].mean())


@pytest.mark.parametrize("thresholds", [(), (0.5,), (0.5, 0.5, 0.5)])
def test_the_number_of_thresholds_is_checked(table: OperatingPoints, thresholds: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match=rf"{len(thresholds)} numbers? given; expected 2"):
        table.resolve(RequestOptions(thresholds=thresholds))


def test_a_budget_takes_the_best_point_within_it(
    table: OperatingPoints, point: Callable[[str], OperatingPoint]
) -> None:
    costs = [point(name).mean_gflops for name in THRESHOLDS]
    assert costs == sorted(costs)
    for name, cost in zip(THRESHOLDS, costs, strict=True):
        assert table.resolve(RequestOptions(budget_gflops=cost)).name == name
        assert table.resolve(RequestOptions(budget_gflops=cost * 1.0001)).name == name
    assert table.resolve(RequestOptions(budget_gflops=float("inf"))).name == "accurate"
    with pytest.raises(OptionError, match=f"expected {costs[0]:.6f} or more"):
        table.resolve(RequestOptions(budget_gflops=costs[0] * 0.999))


def test_a_risk_controlled_point_is_taken_by_name_alone() -> None:
    """However good it looks: its accuracy comes from fewer images."""
    lucky = a_point("risk-0.01", (0.5, 0.5), 0.9, 0.3).model_copy(update={"risk": 0.01, "confidence": 0.95})
    points = [a_point("cheap", (0.1, 0.1), 0.6, 0.2), lucky, a_point("good", (0.9, 0.9), 0.8, 0.4)]
    table = OperatingPoints(by_hand(points), GFLOPS, "good")
    assert table.resolve(RequestOptions(policy="risk-0.01")).name == "risk-0.01"
    assert table.resolve(RequestOptions(budget_gflops=0.35)).name == "cheap"
    assert table.resolve(RequestOptions(budget_gflops=1.0)).name == "good"
    assert table.resolve(RequestOptions(min_accuracy=0.7)).name == "good"
    for floor in ("min_accuracy", "accuracy_floor"):
        with pytest.raises(OptionError, match=r"expected 0 to 0\.8000"):
            table.resolve(RequestOptions(**{floor: 0.85}))
    # Brown-out passes it by, and takes it away unless the request forbids that.
    assert {table.resolve(RequestOptions(), level).name for level in range(LEVELS + 1)} == {"good", "cheap"}
    assert table.resolve(RequestOptions(policy="risk-0.01"), LEVELS).name == "cheap"
    assert table.resolve(RequestOptions(policy="risk-0.01", degrade=False), LEVELS).name == "risk-0.01"
    # Its very thresholds are anyone's: what they give is counted, and here they never were right.
    assert table.resolve(RequestOptions(thresholds=(0.5, 0.5))).expected_accuracy == 0
    alone = OperatingPoints(by_hand([lucky]), GFLOPS, "risk-0.01")
    assert alone.resolve(RequestOptions(), LEVELS).name == "risk-0.01"
    assert alone.resolve(RequestOptions(budget_gflops=0.35)).parameters.thresholds.tolist() == [0.0, 0.0]


def test_a_dearer_point_that_is_worse_is_never_chosen() -> None:
    """A calibration by hand may hold one."""
    points = [
        a_point(name, (0.5, 0.5), accuracy, cost)
        for name, accuracy, cost in [("bad", 0.5, 0.9), ("good", 0.8, 0.4), ("cheap", 0.6, 0.2)]
    ]
    table = OperatingPoints(by_hand(points), GFLOPS, "good")
    assert table.resolve(RequestOptions(budget_gflops=1.0)).name == "good"
    assert table.resolve(RequestOptions(min_accuracy=0.4)).name == "cheap"


def test_an_accuracy_takes_the_cheapest_point_that_reaches_it(
    table: OperatingPoints, point: Callable[[str], OperatingPoint]
) -> None:
    accuracies = [point(name).expected_accuracy for name in THRESHOLDS]
    assert accuracies == sorted(accuracies)
    assert table.resolve(RequestOptions(min_accuracy=0.0)).name == "fast"
    for name, accuracy in zip(THRESHOLDS, accuracies, strict=True):
        assert table.resolve(RequestOptions(min_accuracy=accuracy)).name == name
    with pytest.raises(OptionError, match=f"expected 0 to {accuracies[-1]:.4f}"):
        table.resolve(RequestOptions(min_accuracy=1.0))


def test_exit_bounds(table: OperatingPoints, scores: np.ndarray) -> None:
    found = table.resolve(RequestOptions(min_exit=2, max_exit=2))
    assert (found.parameters.min_exit, found.parameters.max_exit) == (2, 2)
    assert found.expected_gflops == pytest.approx(0.3), "the expectation is under the bounds"
    for options, allowed in [
        (RequestOptions(min_exit=4), "1 to 3"),
        (RequestOptions(max_exit=4), "1 to 3"),
        (RequestOptions(min_exit=3, max_exit=2), "above the last exit allowed; expected 1 to 2"),
    ]:
        with pytest.raises(OptionError, match=allowed):
            table.resolve(options)


def test_a_hard_cap_is_an_exit_bound(table: OperatingPoints) -> None:
    assert table.resolve(RequestOptions(max_gflops=0.1)).parameters.max_exit == 1
    assert table.resolve(RequestOptions(max_gflops=0.299)).parameters.max_exit == 1
    assert table.resolve(RequestOptions(max_gflops=0.3)).parameters.max_exit == 2
    assert table.resolve(RequestOptions(max_gflops=5.0)).parameters.max_exit == 3
    assert table.resolve(RequestOptions(max_gflops=5.0, max_exit=1)).parameters.max_exit == 1
    with pytest.raises(OptionError, match=r"max_gflops: .*expected 0\.100000 or more"):
        table.resolve(RequestOptions(max_gflops=0.09))
    with pytest.raises(OptionError, match="min_exit"):
        table.resolve(RequestOptions(max_gflops=0.2, min_exit=2))


def test_one_exit_needs_no_thresholds() -> None:
    scores, correct = np.ones((4, 1), np.float32), np.ones((4, 1), dtype=bool)
    calibration = made_of([a_point("fast", (), 1.0, 0.1)], scores, correct, [0.1])
    table = OperatingPoints(calibration, [0.1], "fast")
    assert table.resolve(RequestOptions(thresholds=())).parameters.thresholds.tolist() == []
    assert table.resolve(RequestOptions()).parameters.max_exit == 1


def browned(table: OperatingPoints, /, **options: Any) -> list[ResolvedPoint]:
    """The found at every brown-out level."""
    return [table.resolve(RequestOptions(**options), level) for level in range(LEVELS + 1)]


def test_brown_out_walks_to_ever_cheaper_points_and_says_so(table: OperatingPoints) -> None:
    for options in ({}, {"policy": "accurate"}, {"budget_gflops": 5.0}):
        by_level = browned(table, **options)
        costs = [found.expected_gflops for found in by_level]
        assert costs == sorted(costs, reverse=True)
        assert by_level[-1].name == "fast"
        for found in by_level:
            degraded = found.expected_gflops < by_level[0].expected_gflops
            assert (found.source == "brownout") == degraded
            assert tuple(found.parameters.thresholds) == THRESHOLDS[str(found.name)]
    assert {found.source for found in browned(table, policy="fast")} == {"request"}, "there is nothing cheaper"


def test_costs_are_those_of_a_request_without_options(table: OperatingPoints) -> None:
    assert table.costs() == tuple(found.expected_gflops for found in browned(table))


def test_a_level_is_a_share_of_the_way_to_the_cheapest(scores: np.ndarray, correct: np.ndarray) -> None:
    points = [a_point(f"p{i}", (i / 10, 0.5), 0.5 + i / 20, (1 + i) / 8) for i in range(9)]
    table = OperatingPoints(made_of(points, scores, correct, GFLOPS), GFLOPS, "p8")
    assert [found.name for found in browned(table)] == [f"p{i}" for i in range(8, -1, -1)]
    assert [found.name for found in browned(table, policy="p4")] == [
        "p4",
        *(f"p{i}" for i in (3, 3, 2, 2, 1, 1, 0, 0)),
    ]


def test_brown_out_changes_neither_explicit_thresholds_nor_requests_that_refuse(table: OperatingPoints) -> None:
    for options in ({"thresholds": (0.9, 0.8)}, {"degrade": False}, {"policy": "accurate", "degrade": False}):
        by_level = browned(table, **options)
        assert {(tuple(found.parameters.thresholds), found.source) for found in by_level} == {
            (tuple(by_level[0].parameters.thresholds), by_level[0].source)
        }
    assert browned(table, degrade=True)[-1].source == "brownout"


def test_brown_out_stays_at_the_floor(table: OperatingPoints, point: Callable[[str], OperatingPoint]) -> None:
    balanced = point("balanced").expected_accuracy
    by_level = browned(table, policy="accurate", accuracy_floor=balanced)
    assert {found.name for found in by_level} == {"accurate", "balanced"}, "the floor itself may be reached"
    by_level = browned(table, policy="accurate", accuracy_floor=balanced + 1e-9)
    assert {(found.name, found.source) for found in by_level} == {("accurate", "request")}
    assert browned(table, policy="accurate", accuracy_floor=0.0)[-1].name == "fast"


def test_a_floor_does_not_raise_a_point_that_is_below_it(
    table: OperatingPoints, point: Callable[[str], OperatingPoint]
) -> None:
    by_level = browned(table, accuracy_floor=point("accurate").expected_accuracy)
    assert {(found.name, found.source) for found in by_level} == {("balanced", "default")}


def test_min_accuracy_is_a_floor(scores: np.ndarray, correct: np.ndarray) -> None:
    """The cheapest point that reaches it may be found, and nothing beneath; a floor besides may only raise it."""
    points = [a_point(f"p{i}", (i / 10, 0.5), 0.5 + i / 20, (1 + i) / 8) for i in range(9)]
    table = OperatingPoints(made_of(points, scores, correct, GFLOPS), GFLOPS, "p8")
    assert {found.name for found in browned(table, min_accuracy=0.74)} == {"p5"}


def test_the_floors_range_is_named(table: OperatingPoints, point: Callable[[str], OperatingPoint]) -> None:
    most = point("accurate").expected_accuracy
    table.resolve(RequestOptions(accuracy_floor=most))
    with pytest.raises(OptionError, match=r"accuracy_floor: .* expected to reach it; expected 0 to 0\.\d{4}"):
        table.resolve(RequestOptions(accuracy_floor=np.nextafter(most, 1)))


@st.composite
def policies(draw: st.DrawFn, scores: np.ndarray, correct: np.ndarray) -> OperatingPoints:
    """Operating points in any order, some dominated, costs and accuracies with all their digits."""
    points = [
        a_point(f"p{i}", draw(st.tuples(fractions, fractions)), draw(fractions), draw(st.floats(1e-4, 2.0)))
        for i in range(draw(st.integers(1, 6)))
    ]
    return OperatingPoints(made_of(points, scores, correct, GFLOPS), GFLOPS, points[-1].name)


fractions = st.floats(0, 1)
bounds = st.sampled_from([{}, {"min_exit": 2}, {"max_exit": 1}, {"max_exit": 2}, {"min_exit": 2, "max_exit": 2}])


def reach(table: OperatingPoints, bounds: dict[str, int]) -> list[ResolvedPoint]:
    """Every operating point, and every exit alone."""
    named = [{"policy": point.name} for point in table._calibration.points]
    alone = [{"thresholds": fixed_exit(exit, len(GFLOPS))} for exit in (1, 2, 3)]
    return [table.resolve(RequestOptions(**choice, **bounds)) for choice in [*named, *alone]]


@given(st.data())
def test_whatever_can_be_met_is_and_more_budget_is_never_worse(
    scores: np.ndarray, correct: np.ndarray, data: st.DataObject
) -> None:
    table, within = data.draw(policies(scores, correct)), data.draw(bounds)
    reachable = reach(table, within)
    least, most = min(p.expected_gflops for p in reachable), max(p.expected_accuracy for p in reachable)
    costs = [p.expected_gflops for p in reachable]
    budgets = sorted(data.draw(st.lists(st.floats(0, 2.5) | st.sampled_from(costs), min_size=2, max_size=5)))
    best = -1.0
    for budget in budgets:
        if budget < least:
            refused(table, "budget_gflops", budget, within, at_least=least)
            continue
        found = table.resolve(RequestOptions(budget_gflops=budget, **within))
        assert found.expected_gflops <= budget
        bought = [p for p in reachable if p.expected_gflops <= budget]
        most_named = max((p.expected_accuracy for p in bought if p.name is not None), default=0.0)
        # Of exits alone those that gain next to nothing are not bought.
        assert found.expected_accuracy >= max(most_named, best)
        assert found.expected_accuracy <= max(p.expected_accuracy for p in bought)
        assert found.expected_accuracy >= max(p.expected_accuracy for p in bought) - FIXED_EXIT_GAIN - 1e-12
        best = found.expected_accuracy
    wanted = data.draw(fractions | st.sampled_from([p.expected_accuracy for p in reachable]))
    for name in ("min_accuracy", "accuracy_floor"):
        if wanted > most:
            refused(table, name, wanted, within, at_most=most)
        else:
            found = table.resolve(RequestOptions(**{name: wanted}, **within))
            if name == "min_accuracy":
                assert found.expected_accuracy >= wanted
                assert found.expected_gflops == min(
                    p.expected_gflops for p in reachable if p.expected_accuracy >= wanted
                )


def refused(
    table: OperatingPoints,
    name: str,
    value: float,
    within: dict[str, int],
    *,
    at_least: float = 0.0,
    at_most: float = 1.0,
) -> None:
    """It is refused, and the bound that is named is allowed, and close."""
    with pytest.raises(OptionError, match=f"^{name}: .*; expected ") as caught:
        table.resolve(RequestOptions(**{name: value}, **within))
    words = str(caught.value)
    named = float(words.removesuffix(" or more").split()[-1])
    table.resolve(RequestOptions(**{name: named}, **within))
    assert 0 <= named - at_least <= 1.01e-6 if at_least else 0 <= at_most - named <= 1.01e-4


@given(st.data())
def test_brown_out_keeps_every_promise(scores: np.ndarray, correct: np.ndarray, data: st.DataObject) -> None:
    table, within = data.draw(policies(scores, correct)), data.draw(bounds)
    reachable = [point for point in reach(table, within) if point.name is not None]
    most = max(p.expected_accuracy for p in reachable)
    floor = data.draw(st.floats(0, most))
    selector = data.draw(st.sampled_from([{}, {"min_accuracy": floor}, {"accuracy_floor": floor}]))
    by_level = browned(table, **selector, **within)
    calm = by_level[0]
    for before, found in itertools.pairwise(by_level):
        assert found.expected_gflops <= before.expected_gflops or found.expected_accuracy >= before.expected_accuracy
    for found in by_level:
        assert found.expected_gflops <= calm.expected_gflops
        assert (found.source == "brownout") == (found.expected_gflops < calm.expected_gflops)
        if selector and calm.expected_accuracy >= floor:
            assert found.expected_accuracy >= floor
    cheapest = min(p.expected_gflops for p in reachable if not selector or p.expected_accuracy >= floor)
    if not selector or calm.expected_accuracy >= floor:
        assert by_level[-1].expected_gflops == min(cheapest, calm.expected_gflops)


def test_what_is_named_is_allowed_where_binary_products_round_the_other_way(
    scores: np.ndarray, correct: np.ndarray
) -> None:
    cost = float(np.nextafter(0.141, 1))
    assert cost * 1e6 == 0.141 * 1e6, "in binary the product does not tell them apart"
    gflops = [0.2, 0.3, 1.0]
    table = OperatingPoints(made_of([a_point("only", (0.5, 0.5), 0.9, cost)], scores, correct, gflops), gflops, "only")
    refused(table, "budget_gflops", 0.1, {}, at_least=cost)
