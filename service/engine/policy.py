"""What a request asked for → thresholds and exit bounds, with what they are expected to give."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import OptionError
from model.weights import Calibration, OperatingPoint
from service.options import RequestOptions

Source = Literal["request", "default", "brownout"]


@dataclass(frozen=True)
class Plan:
    """Thresholds [K - 1] and bounds of one request, and the expectation on the calibration images under both."""

    name: str | None
    source: Source
    thresholds: NDArray[np.float64]
    min_exit: int
    max_exit: int
    expected_accuracy: float
    expected_gflops: float


class Policy:
    """Budgets to operating points, over one calibration. `gflops` is the cumulative cost of each exit."""

    def __init__(self, calibration: Calibration, gflops: list[float], default: str) -> None:
        self._calibration, self._gflops = calibration, gflops
        self.exits = len(gflops)
        self._points = {point.name: point for point in calibration.points}
        if default not in self._points:
            raise OptionError("--policy", f"{default!r} is no operating point; there are {', '.join(self._points)}")
        self.default = self._points[default]

    def plan(self, options: RequestOptions) -> Plan:
        """Resolve a request's options.

        Raises:
            OptionError: what no operating point can meet, with the attainable range.
        """
        low, high = self._bounds(options)
        name: str | None
        if options.thresholds is not None:
            if len(options.thresholds) != self.exits - 1:
                count, given = self.exits - 1, len(options.thresholds)
                raise OptionError("thresholds", f"{given} numbers given, allowed: {count}, one an exit but the last")
            name, thresholds = None, options.thresholds
        else:
            point = self._point(options)
            name, thresholds = point.name, point.thresholds
        expected = self._calibration.expect(thresholds, low, high)
        chosen = any(v is not None for v in (options.thresholds, options.policy, options.budget_gflops))
        return Plan(
            name,
            "request" if chosen or options.min_accuracy is not None else "default",
            np.array(thresholds, dtype=np.float64),
            low,
            high,
            expected.accuracy,
            expected.mean_gflops,
        )

    def _point(self, options: RequestOptions) -> OperatingPoint:
        points = sorted(self._calibration.points, key=lambda p: (p.mean_gflops, -p.expected_accuracy))
        if options.policy is not None:
            if options.policy not in self._points:
                known = ", ".join(self._points)
                raise OptionError("policy", f"{options.policy[:40]!a} is no operating point; allowed: {known}")
            return self._points[options.policy]
        if options.budget_gflops is not None:
            within = [p for p in points if p.mean_gflops <= options.budget_gflops]
            if not within:
                least = points[0].mean_gflops
                raise OptionError("budget_gflops", f"nothing is that cheap; allowed: {least:.6f} or more")
            return max(within, key=lambda p: p.expected_accuracy)
        if options.min_accuracy is not None:
            enough = [p for p in points if p.expected_accuracy >= options.min_accuracy]
            if not enough:
                most = max(p.expected_accuracy for p in points)
                raise OptionError("min_accuracy", f"nothing is expected to reach it; allowed: 0 to {most:.4f}")
            return enough[0]
        return self.default

    def _bounds(self, options: RequestOptions) -> tuple[int, int]:
        low, high = options.min_exit or 1, options.max_exit or self.exits
        for name, value in (("min_exit", low), ("max_exit", high)):
            if value > self.exits:
                raise OptionError(name, f"{value} is out of range; allowed: 1 to {self.exits}")
        if options.max_gflops is not None:
            affordable = sum(cost <= options.max_gflops for cost in self._gflops)
            if not affordable:
                raise OptionError("max_gflops", f"no exit is that cheap; allowed: {self._gflops[0]:.6f} or more")
            high = min(high, affordable)
        if low > high:
            raise OptionError("min_exit", f"{low} is above the last exit allowed, {high}")
        return low, high
