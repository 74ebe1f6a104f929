"""What a request asked for → thresholds and exit bounds, with what they are expected to give."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import OptionError
from msmlp.model.weights import Calibration
from msmlp.service.engine.brownout import LEVELS
from msmlp.service.options import RequestOptions

Source = Literal["request", "default", "brownout"]


@dataclass(frozen=True)
class Plan:
    """Thresholds [K - 1] and bounds of one request, and the expectation on the calibration images under both.

    `min_exit` is 0 where the request demands none.
    """

    name: str | None
    source: Source
    thresholds: NDArray[np.float64]
    min_exit: int
    max_exit: int
    expected_accuracy: float
    expected_gflops: float


@dataclass(frozen=True)
class Offer:
    """An operating point, or thresholds of a request's own (without a name), under the request's exit bounds."""

    name: str | None
    thresholds: tuple[float, ...]
    accuracy: float
    mean_gflops: float
    by_name_only: bool = False


class Policy:
    """Budgets to operating points, over one calibration. `gflops` is the cumulative cost of each exit."""

    def __init__(self, calibration: Calibration, gflops: list[float], default: str) -> None:
        self._calibration, self._gflops = calibration, gflops
        self.exits = len(gflops)
        self._names = [point.name for point in calibration.points]
        if default not in self._names:
            raise OptionError("--policy", f"{default!r} is no operating point; there are {', '.join(self._names)}")
        self.default = default
        self._offers = lru_cache(maxsize=256)(self._under_bounds)
        self._plans = lru_cache(maxsize=256)(self._plan)

    def plan(self, options: RequestOptions, brownout: int = 0) -> Plan:
        """Resolve a request's options at a brown-out level, 0 to LEVELS.

        Raises:
            OptionError: what no operating point can meet, with the attainable range.
        """
        return self._plans(options, brownout)

    def _plan(self, options: RequestOptions, brownout: int) -> Plan:
        low, high = self._bounds(options)
        if options.thresholds is not None:
            chosen = self._explicit(options.thresholds, low, high)
            source: Source = "request"
        else:
            chosen, source = self._selected(options, self._offers(low, high), brownout)
        thresholds = np.array(chosen.thresholds, dtype=np.float64)
        thresholds.flags.writeable = False  # many requests share it
        return Plan(chosen.name, source, thresholds, low, high, chosen.accuracy, chosen.mean_gflops)

    def costs(self) -> tuple[float, ...]:
        """Expected GFLOPs an image, by brown-out level, of a request without options [LEVELS + 1]."""
        return tuple(self.plan(RequestOptions(), level).expected_gflops for level in range(LEVELS + 1))

    def _explicit(self, thresholds: tuple[float, ...], low: int, high: int) -> Offer:
        if len(thresholds) != self.exits - 1:
            count, given = self.exits - 1, len(thresholds)
            raise OptionError("thresholds", f"{given} numbers given, allowed: {count}, one an exit but the last")
        expected = self._calibration.expect(thresholds, low, high)
        return Offer(None, thresholds, expected.accuracy, expected.mean_gflops)

    def _selected(self, options: RequestOptions, offers: list[Offer], brownout: int) -> tuple[Offer, Source]:
        chosen = self._choose(options, offers)
        if brownout and options.degrade is not False:
            cheaper = self._browned_out(options, offers, chosen, brownout)
            if cheaper.mean_gflops < chosen.mean_gflops:
                return cheaper, "brownout"
        selectors = (options.policy, options.budget_gflops, options.min_accuracy)
        return chosen, "request" if any(v is not None for v in selectors) else "default"

    def _under_bounds(self, low: int, high: int) -> list[Offer]:
        """Every operating point as it is under exit bounds, in the order of the file.

        Without bounds what the calibration says of it (cross-fitted); under bounds, what the table says.
        Risk-controlled points are for who asks for them: what is known of their accuracy comes from fewer images.
        """
        offers = []
        for point in self._calibration.points:
            if low <= 1 and high == self.exits:
                accuracy, gflops = point.expected_accuracy, point.mean_gflops
            else:
                expected = self._calibration.expect(point.thresholds, low, high)
                accuracy, gflops = expected.accuracy, expected.mean_gflops
            offers.append(Offer(point.name, point.thresholds, accuracy, gflops, point.risk is not None))
        return offers

    def _choose(self, options: RequestOptions, offers: list[Offer]) -> Offer:
        frontier = _frontier(offers)
        if options.accuracy_floor is not None:
            self._attainable("accuracy_floor", options.accuracy_floor, frontier)
        if options.budget_gflops is not None:
            return _best_within(options.budget_gflops, frontier)
        if options.min_accuracy is not None:
            self._attainable("min_accuracy", options.min_accuracy, frontier)
            return min((o for o in frontier if o.accuracy >= options.min_accuracy), key=_cheap)
        name = self.default if options.policy is None else options.policy
        if name not in self._names:
            raise OptionError("policy", f"{name[:40]!a} is no operating point; allowed: {', '.join(self._names)}")
        return offers[self._names.index(name)]

    @staticmethod
    def _attainable(name: str, accuracy: float, offers: list[Offer]) -> None:
        most = max(o.accuracy for o in offers)
        if accuracy > most:
            raise OptionError(name, f"nothing is expected to reach it; allowed: 0 to {_down(most)}")

    @staticmethod
    def _browned_out(options: RequestOptions, offers: list[Offer], chosen: Offer, level: int) -> Offer:
        """The best point within the level's share of the way from the chosen cost down to the cheapest.

        Never below what the request wants at least; where the chosen point is below that already, it stays.
        """
        floor = max(options.accuracy_floor or 0.0, options.min_accuracy or 0.0)
        allowed = [o for o in _frontier(offers) if o.accuracy >= floor] if chosen.accuracy >= floor else [chosen]
        cheapest = min(o.mean_gflops for o in allowed)
        budget = chosen.mean_gflops - level / LEVELS * (chosen.mean_gflops - cheapest)
        return _best_within(max(budget, cheapest), allowed)

    def _bounds(self, options: RequestOptions) -> tuple[int, int]:
        low, high = options.min_exit or 0, options.max_exit or self.exits
        for name, value in (("min_exit", low), ("max_exit", high)):
            if value > self.exits:
                raise OptionError(name, f"{value} is out of range; allowed: 1 to {self.exits}")
        if options.max_gflops is not None:
            affordable = sum(cost <= options.max_gflops for cost in self._gflops)
            if not affordable:
                raise OptionError("max_gflops", f"no exit is that cheap; allowed: {_up(self._gflops[0])} or more")
            high = min(high, affordable)
        if low > high:
            raise OptionError("min_exit", f"{low} is above the last exit; allowed: 1 to {high}")
        return low, high


def _frontier(offers: list[Offer]) -> list[Offer]:
    """What budgets, accuracies and brown-out choose among."""
    return [o for o in offers if not o.by_name_only] or offers


def _cheap(offer: Offer) -> tuple[float, float]:
    return offer.mean_gflops, -offer.accuracy


def _best_within(budget: float, offers: list[Offer]) -> Offer:
    within = [o for o in offers if o.mean_gflops <= budget]
    if not within:
        least = min(o.mean_gflops for o in offers)
        raise OptionError("budget_gflops", f"nothing is that cheap; allowed: {_up(least)} or more")
    return max(within, key=lambda o: (o.accuracy, -o.mean_gflops))


def _up(value: float) -> str:
    """Six digits, rounded so that what is named is allowed: in decimal, as binary products may round the other way."""
    return str(Decimal(str(value)).quantize(Decimal("1e-6"), ROUND_CEILING))


def _down(value: float) -> str:
    return str(Decimal(str(value)).quantize(Decimal("1e-4"), ROUND_FLOOR))
