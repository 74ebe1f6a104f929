"""From a request's options to an operating point: thresholds, exit bounds, and the expected accuracy and cost.

One estimate for each choice, so that no two answers contradict each other:

- an operating point, by name, by target or by its own thresholds: that of the calibration;
- a fixed exit: counted on the calibration images, as nothing was chosen on them;
- other thresholds, or an operating point within exit bounds: counted too, but never better than what may be chosen
  instead. Thresholds that look better on the images that chose them are lucky.

So `min_accuracy` grants, under the same bounds, whatever accuracy an answer expects, and `budget_gflops` whatever cost;
only risk-controlled points have an accuracy of their own, by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Literal

import numpy as np

from msmlp.model.errors import OptionError
from msmlp.model.text import has_own_name
from msmlp.model.weights import Calibration
from msmlp.model.weights.calibration import (
    FIXED_EXIT_GAIN,
    Expectation,
    OperatingPoint,
    fixed_exit,
    standard_error,
)
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.engine.messages import ExitParameters
from msmlp.service.options import NO_OPTIONS, RequestOptions

Source = Literal["request", "default", "brownout"]


@dataclass(frozen=True)
class ResolvedPoint:
    """An operating point under a request's exit bounds; without a name, a fixed exit or the request's own thresholds.

    `parameters` is what the engine needs of it; `expected_accuracy`, with its standard error, and `expected_gflops`
    are what images like the calibration's get. `by_name_only`: budgets, accuracies and brown-out do not choose it;
    `slight`: accuracies alone do, as it gains next to nothing (FIXED_EXIT_GAIN) over what costs no more.
    """

    name: str | None
    source: Source
    parameters: ExitParameters
    expected_accuracy: float
    standard_error: float
    expected_gflops: float
    by_name_only: bool = False
    slight: bool = False

    def is_at(self, thresholds: tuple[float, ...]) -> bool:
        return tuple(self.parameters.thresholds.tolist()) == thresholds


class OperatingPoints:
    """The operating points of one calibration; `gflops` is the cumulative cost of each exit."""

    def __init__(self, calibration: Calibration, gflops: list[float], default: str) -> None:
        self._calibration, self._gflops = calibration, gflops
        self.exits = len(gflops)
        self._names = [point.name for point in calibration.points]
        if default not in self._names:
            raise OptionError("--policy", self._unknown(default))
        self.default = default
        self._most = _most(self._under_bounds(0, self.exits))
        self._candidates = lru_cache(maxsize=256)(self._under_bounds)
        self._resolved = lru_cache(maxsize=256)(self._resolve)
        self._without_options = [self._resolve(NO_OPTIONS, level) for level in range(LEVELS + 1)]

    def resolve(self, options: RequestOptions, brownout: int = 0) -> ResolvedPoint:
        """The operating point of a request at a brown-out level, 0 to LEVELS.

        Raises:
            OptionError: no operating point meets what was asked for; names the attainable range.
        """
        if options is NO_OPTIONS:  # mostly, and hashing them takes longer than all else here
            return self._without_options[brownout]
        return self._resolved(options, brownout)

    def _resolve(self, options: RequestOptions, brownout: int) -> ResolvedPoint:
        low, high = self._bounds(options)
        if options.thresholds is not None:
            return self._explicit(options.thresholds, low, high)
        return self._select(options, self._candidates(low, high), brownout)

    def costs(self) -> tuple[float, ...]:
        """Expected GFLOPs per image of a request without options, by brown-out level [LEVELS + 1]."""
        return tuple(point.expected_gflops for point in self._without_options)

    def _unknown(self, name: str) -> str:
        return f"{name[:40]!a} is not an operating point; expected one of {in_words(self._names)}"

    def _explicit(self, thresholds: tuple[float, ...], low: int, high: int) -> ResolvedPoint:
        if len(thresholds) != self.exits - 1:
            given = "1 number" if len(thresholds) == 1 else f"{len(thresholds)} numbers"
            raise OptionError("thresholds", f"{given} given; expected {self.exits - 1}, one per exit except the last")
        choices = _choices(self._candidates(low, high))
        for point in choices:
            if point.is_at(thresholds):
                return replace(point, name=None)
        return _point(None, thresholds, low, high, self._counted(thresholds, low, high, _most(choices)))

    def _select(self, options: RequestOptions, candidates: list[ResolvedPoint], brownout: int) -> ResolvedPoint:
        chosen = self._choose(options, candidates)
        if brownout and options.degrade is not False:
            cheaper = self._browned_out(options, candidates, chosen, brownout)
            if cheaper.expected_gflops < chosen.expected_gflops:
                return replace(cheaper, source="brownout")
        selected = (options.policy, options.budget_gflops, options.min_accuracy) != (None, None, None)
        return chosen if selected else replace(chosen, source="default")

    def _under_bounds(self, low: int, high: int) -> list[ResolvedPoint]:
        """Every operating point under exit bounds, in the order of the file, and the fixed exits that are none.

        Risk-controlled points are chosen by name only: fewer images support their accuracy.
        """
        candidates = []
        for point in self._calibration.points:
            bounded = low > 1 or high < self.exits
            expected = self._counted(point.thresholds, low, high, self._most) if bounded else _calibrated(point)
            candidate = _point(point.name, point.thresholds, low, high, expected)
            candidates.append(replace(candidate, by_name_only=point.risk is not None))
        for exit in range(max(low, 1), high + 1):
            thresholds = fixed_exit(exit, self.exits)
            if any(point.is_at(thresholds) for point in _choices(candidates)):
                continue
            alone = _point(None, thresholds, low, high, self._calibration.expect(thresholds, low, high))
            within = [p for p in _choices(candidates) if p.expected_gflops <= alone.expected_gflops and not p.slight]
            slight = bool(within) and alone.expected_accuracy <= _most(within) + FIXED_EXIT_GAIN
            candidates.append(replace(alone, slight=slight))
        return candidates

    def _counted(self, thresholds: tuple[float, ...], low: int, high: int, most: float) -> Expectation:
        """The expectation on the calibration images, with an accuracy of at most `most`."""
        counted = self._calibration.expect(thresholds, low, high)
        if counted.accuracy <= most:
            return counted
        images = self._calibration.file.images
        return replace(counted, accuracy=most, standard_error=standard_error(round(most * images), images))

    def _choose(self, options: RequestOptions, candidates: list[ResolvedPoint]) -> ResolvedPoint:
        choices = _choices(candidates)
        if options.accuracy_floor is not None:
            _check_attainable("accuracy_floor", options.accuracy_floor, choices)
        if options.budget_gflops is not None:
            return _best_within(options.budget_gflops, [point for point in choices if not point.slight])
        if options.min_accuracy is not None:
            _check_attainable("min_accuracy", options.min_accuracy, choices)
            accurate = [point for point in choices if point.expected_accuracy >= options.min_accuracy]
            return min(accurate, key=lambda point: (point.expected_gflops, -point.expected_accuracy))
        name = self.default if options.policy is None else options.policy
        if name not in self._names:
            raise OptionError("policy", self._unknown(name))
        return candidates[self._names.index(name)]

    @staticmethod
    def _browned_out(
        options: RequestOptions, candidates: list[ResolvedPoint], chosen: ResolvedPoint, level: int
    ) -> ResolvedPoint:
        """The best point within the level's share of the way from the chosen cost down to the cheapest.

        Never below the accuracy that the request asks for; a chosen point that is below it already stays.
        """
        floor = max(options.accuracy_floor or 0.0, options.min_accuracy or 0.0)
        allowed = [chosen]
        if chosen.expected_accuracy >= floor:
            allowed += [p for p in _choices(candidates) if p.name is not None and p.expected_accuracy >= floor]
        cheapest = min(point.expected_gflops for point in allowed)
        budget = chosen.expected_gflops - level / LEVELS * (chosen.expected_gflops - cheapest)
        return _best_within(max(budget, cheapest), allowed)

    def _bounds(self, options: RequestOptions) -> tuple[int, int]:
        low, high = options.min_exit or 0, options.max_exit or self.exits
        for name, value in (("min_exit", low), ("max_exit", high)):
            if value > self.exits:
                raise OptionError(name, f"{value} is out of range; expected {_one_to(self.exits)}")
        if options.max_gflops is not None:
            affordable = sum(cost <= options.max_gflops for cost in self._gflops)
            if not affordable:
                raise OptionError("max_gflops", f"no exit is that cheap; expected {_up(self._gflops[0])} or more")
            high = min(high, affordable)
        if low > high:
            raise OptionError("min_exit", f"{low} is above the last exit allowed; expected {_one_to(high)}")
        return low, high


def in_words(names: Sequence[str]) -> str:
    """The operating points, those with a name of their own first and the numbered ones (p01, p02, ...) as a range."""
    numbered = [name for name in names if not has_own_name(name)]
    own = [name for name in names if name not in numbered]
    return ", ".join([*own, f"{numbered[0]} to {numbered[-1]}"] if len(numbered) > 1 else own + numbered)


def _one_to(most: int) -> str:
    return "1" if most == 1 else f"1 to {most}"


def _point(
    name: str | None, thresholds: tuple[float, ...], low: int, high: int, expected: Expectation
) -> ResolvedPoint:
    array = np.array(thresholds, dtype=np.float64)
    array.flags.writeable = False  # many requests share it
    parameters = ExitParameters(array, low, high)
    return ResolvedPoint(name, "request", parameters, expected.accuracy, expected.standard_error, expected.mean_cost)


def _calibrated(point: OperatingPoint) -> Expectation:
    return Expectation(point.expected_accuracy, point.standard_error, point.mean_gflops, point.exit_share)


def _choices(candidates: list[ResolvedPoint]) -> list[ResolvedPoint]:
    """What budgets and accuracies choose among; brown-out, among those with a name."""
    return [point for point in candidates if not point.by_name_only]


def _most(candidates: list[ResolvedPoint]) -> float:
    return max(point.expected_accuracy for point in candidates)


def _check_attainable(name: str, accuracy: float, candidates: list[ResolvedPoint]) -> None:
    most = _most(candidates)
    if accuracy > most:
        raise OptionError(name, f"no operating point is expected to reach it; expected 0 to {_down(most)}")


def _best_within(budget: float, candidates: list[ResolvedPoint]) -> ResolvedPoint:
    within = [point for point in candidates if point.expected_gflops <= budget]
    if not within:
        least = min(point.expected_gflops for point in candidates)
        raise OptionError("budget_gflops", f"no operating point is that cheap; expected {_up(least)} or more")
    return max(within, key=lambda point: (point.expected_accuracy, -point.expected_gflops))


def _up(value: float) -> str:
    """Six digits, rounded up so that the number named is allowed; in decimal, as binary products may round down."""
    return str(Decimal(str(value)).quantize(Decimal("1e-6"), ROUND_CEILING))


def _down(value: float) -> str:
    return str(Decimal(str(value)).quantize(Decimal("1e-4"), ROUND_FLOOR))
