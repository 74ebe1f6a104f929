from collections.abc import Callable

import numpy as np
import pytest

from model.errors import OptionError
from model.exits import exit_of
from model.weights import Calibration, OperatingPoint
from model.weights.calibration import CalibrationFile, expectation
from service.engine.policy import Policy
from service.options import RequestOptions

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
        (RequestOptions(min_exit=3, max_exit=2), "above the last exit allowed, 2"),
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
