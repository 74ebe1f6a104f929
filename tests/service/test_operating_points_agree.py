"""Whatever a small calibration says by one option, it says by every other: on random validation tables."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msmlp.model.calibration.frontier import operating_points
from msmlp.model.calibration.solvers import joint_frontier
from msmlp.model.errors import OptionError
from msmlp.model.weights import Calibration, OperatingPoint
from msmlp.model.weights.calibration import CalibrationFile, Table, fixed_exit
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.options import RequestOptions
from tests.model.calibration.tables import held_apart, table

# Few images and several exits: there thresholds that were tuned look far better than they are.
TABLES = st.builds(
    table, st.just(3), st.integers(3, 16), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, -0.3, 0.3])
)


def over_small_tables(test: Callable[[Table], None]) -> Callable[[Table], None]:
    """A hypothesis test over TABLES, and some of other numbers of exits."""
    for exits in (1, 2, 4):
        test = example(table(exits, 12, 3, False, 0.1))(test)
    return given(TABLES)(test)


def served(measured: Table, points: list[OperatingPoint] | None = None) -> OperatingPoints:
    """As `msmlp calibrate` and the service make them of a table of validation images."""
    gflops = measured.costs.tolist()
    points = points or operating_points(measured, joint_frontier(measured), held_apart(measured), measured.costs)
    file = CalibrationFile(
        format=1,
        model_sha256="0",
        exit_policy="max-probability",
        temperatures=(1.0,) * measured.exits,
        operating_points=tuple(points),
        images=len(measured.scores),
        digest="0",
        device="cpu",
        files={},
    )
    return OperatingPoints(Calibration(file, measured, "0"), gflops, points[-1].name)


def bounds(exits: int) -> list[dict[str, int]]:
    """None, and all."""
    return [{}, *({"min_exit": low, "max_exit": high} for low in range(1, exits + 1) for high in range(low, exits + 1))]


def own_thresholds(measured: Table, min_exit: int = 1, max_exit: int | None = None) -> list[tuple[float, ...]]:
    """Some, and the best on this very table with these exits, which flatters them."""
    exits = slice(min_exit - 1, max_exit)
    allowed = Table(measured.scores[:, exits], measured.correct[:, exits], measured.costs[exits])
    tuned = [(1.0,) * (min_exit - 1) + setting.thresholds for setting in joint_frontier(allowed)[-3:]]
    some = [tuple(row) for row in measured.scores[:3, :-1].astype(float).tolist()]
    return some + [thresholds + (0.0,) * (measured.exits - 1 - len(thresholds)) for thresholds in tuned]


def answer(points: OperatingPoints, **options: Any) -> tuple[float, float]:
    """The accuracy and the cost that an answer expects."""
    found = points.resolve(RequestOptions(**options))
    return found.expected_accuracy, found.expected_gflops


@over_small_tables
def test_what_thresholds_expect_can_be_asked_for(measured: Table) -> None:
    points = served(measured)
    for within in bounds(measured.exits):
        for thresholds in own_thresholds(measured, **within):
            accuracy, gflops = answer(points, thresholds=thresholds, **within)
            assert answer(points, min_accuracy=accuracy, **within)[0] >= accuracy
            points.resolve(RequestOptions(accuracy_floor=accuracy, **within))
            assert answer(points, budget_gflops=gflops, **within)[1] <= gflops


@over_small_tables
def test_what_a_point_expects_can_be_asked_for_and_its_thresholds_expect_the_same(measured: Table) -> None:
    points = served(measured)
    for within in bounds(measured.exits):
        for name in points._names:
            point = points.resolve(RequestOptions(policy=name, **within))
            accuracy, gflops = point.expected_accuracy, point.expected_gflops
            assert answer(points, min_accuracy=accuracy, **within)[1] <= gflops
            assert answer(points, budget_gflops=gflops, **within)[0] >= accuracy
            thresholds = tuple(point.parameters.thresholds.tolist())
            own = points.resolve(RequestOptions(thresholds=thresholds, **within))
            assert (own.name, own.expected_accuracy, own.expected_gflops) == (None, accuracy, gflops)
            assert own.standard_error == point.standard_error


@over_small_tables
def test_an_exit_alone_expects_one_accuracy_however_it_is_asked_for(measured: Table) -> None:
    points = served(measured)
    for exit in range(1, measured.exits + 1):
        accuracy, gflops = float(measured.correct[:, exit - 1].mean()), float(measured.costs[exit - 1])
        thresholds = fixed_exit(exit, measured.exits)
        for within in bounds(measured.exits):
            if not within.get("min_exit", 1) <= exit <= within.get("max_exit", exit):
                continue
            assert answer(points, thresholds=thresholds, **within) == (accuracy, pytest.approx(gflops))
            bought = answer(points, min_accuracy=accuracy, **within)
            assert bought[0] >= accuracy
            assert bought[1] <= gflops * (1 + 1e-9)
            assert answer(points, budget_gflops=gflops * (1 + 1e-9), **within)[0] >= accuracy
        assert answer(points, min_exit=exit, max_exit=exit) == (accuracy, pytest.approx(gflops))


@over_small_tables
def test_fewer_exits_never_promise_more(measured: Table) -> None:
    points = served(measured)
    for within in bounds(measured.exits):
        chosen = [{"policy": name} for name in points._names]
        chosen += [{"thresholds": thresholds} for thresholds in own_thresholds(measured, **within)]
        promised = max(answer(points, **each, **within)[0] for each in chosen)
        assert answer(points, min_accuracy=promised)[0] >= promised


@over_small_tables
def test_nothing_chosen_on_these_images_is_expected_to_beat_what_was_not(measured: Table) -> None:
    points = served(measured)
    calibrated = [point.expected_accuracy for point in points._calibration.points]
    most = max(*calibrated, *measured.correct.mean(axis=0).tolist())
    for within in bounds(measured.exits):
        for thresholds in own_thresholds(measured, **within):
            assert answer(points, thresholds=thresholds, **within)[0] <= most


def coins(images: int) -> Table:
    """Scores that say nothing: tuned on few images, they seem to."""
    rng = np.random.default_rng(5)
    correct = rng.random((images, 2)) < 0.5
    return Table(rng.random((images, 2), dtype=np.float32), correct, np.array([1.0, 2.0]))


def test_thresholds_tuned_on_these_images_are_taken_for_luck() -> None:
    measured = coins(15)
    points = served(measured)
    tuned = max(joint_frontier(measured), key=lambda setting: setting.accuracy)
    alone = measured.correct.mean(axis=0).max()
    assert tuned.accuracy > alone
    assert answer(points, thresholds=tuned.thresholds)[0] < tuned.accuracy
    with pytest.raises(OptionError, match="no operating point is expected to reach it"):
        points.resolve(RequestOptions(min_accuracy=tuned.accuracy))


def test_of_an_older_calibration_an_exit_that_beats_its_points_can_be_asked_for() -> None:
    """Fixed exits were no candidates of the frontier; 80 % of all images, where the best point expects 50 %."""
    correct = np.zeros((5, 2), dtype=np.bool_)
    correct[:4, 1] = correct[0, 0] = True
    measured = Table(np.linspace(0.1, 0.9, 10, dtype=np.float32).reshape(5, 2), correct, np.array([1.0, 2.0]))
    old = OperatingPoint(
        name="accurate",
        thresholds=(0.5,),
        expected_accuracy=0.5,
        standard_error=0.2,
        mean_gflops=1.6,
        exit_share=(0.4, 0.6),
        solver="joint",
    )
    points = served(measured, [old])
    found = points.resolve(RequestOptions(min_accuracy=0.8))
    assert (found.name, found.source, found.parameters.thresholds.tolist()) == (None, "request", [1.0])
    assert (found.expected_accuracy, found.expected_gflops) == (0.8, 2.0)
    assert points.resolve(RequestOptions(budget_gflops=2.0)).expected_accuracy == 0.8
    assert points.resolve(RequestOptions(budget_gflops=1.7)).name == "accurate"
    with pytest.raises(OptionError, match=r"expected 0 to 0\.8000"):
        points.resolve(RequestOptions(min_accuracy=0.81))
