"""What an operator asks, answered by simulations: how many replicas, what one buys, what brown-out saves, what failures
do."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from msmlp.model.errors import MsmlpError
from msmlp.model.text import percent
from msmlp.model.weights import Calibration
from msmlp.plan.costs import Costs
from msmlp.plan.fleet import LOST, Failure, Fleet, Outcome, Routing, Summary, summary
from msmlp.plan.replica import Limits, Replica
from msmlp.plan.traffic import Traffic
from msmlp.service.operating_points import OperatingPoints

BINS = 60
"""Of a run, for plots."""
NEAR = 0.02
"""Relative precision of the rate that one replica can carry."""


@dataclass(frozen=True)
class Goal:
    """p99 in milliseconds, the least accuracy (0: any), and the largest share of requests that may be refused."""

    p99_ms: float
    accuracy: float = 0.0
    refused: float = 0.001

    def met_by(self, seen: Summary) -> bool:
        """False too where no request was answered."""
        if seen.p99_ms is None or seen.accuracy is None:
            return False
        return seen.p99_ms <= self.p99_ms and seen.accuracy >= self.accuracy and seen.refused <= self.refused


class TooMuchError(MsmlpError):
    """No number of replicas that may be tried meets the goal."""


@dataclass(frozen=True)
class Simulation:
    """Everything but the number of replicas."""

    costs: Costs
    calibration: Calibration
    points: OperatingPoints
    traffic: Traffic
    limits: Limits
    routing: Routing = "two-choices"
    seed: int = 0

    def run(self, replicas: int, *, factor: float = 1.0, failure: Failure | None = None) -> Outcome:
        """The traffic, `factor` times as dense, on a number of replicas; the same draws for the same seed."""
        rng = np.random.default_rng(self.seed)
        requests = self.traffic.make(factor, rng)

        def build() -> Replica:
            return Replica(self.costs, self.calibration.table, self.points, self.limits, rng)

        proxy = self.costs.proxy_seconds, self.costs.proxy_latency_seconds
        fleet = Fleet(build, replicas, self.routing, failure, rng, *proxy)
        return fleet.run(requests, self.traffic.seconds)

    def summary(self, replicas: int, *, factor: float = 1.0) -> Summary:
        """Of such a run, from `lead` on."""
        return summary(self.run(replicas, factor=factor), self.traffic.lead, self.traffic.seconds)

    def needed(self, goal: Goal, most: int) -> int:
        """The fewest replicas that meet the goal: doubled until they do, then halved in between.

        Raises:
            TooMuchError: `most` do not.
        """
        low, high = 0, 1
        while not goal.met_by(seen := self.summary(high)):
            if high == most:
                raise TooMuchError(f"{most} replicas do not meet the goal: {_missed(goal, seen)}")
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            if goal.met_by(self.summary(middle)):
                high = middle
            else:
                low = middle
        return high

    def carried_by_one(self, goal: Goal) -> float | None:
        """The largest factor on the traffic at which one replica meets the goal; None if it meets it at none."""
        low, high = 0.0, 1.0
        while goal.met_by(self.summary(1, factor=high)) and high < 1e6:
            low, high = high, 2 * high
        while high - low > NEAR * high and high > 1e-3:
            middle = (low + high) / 2
            if goal.met_by(self.summary(1, factor=middle)):
                low = middle
            else:
                high = middle
        return low or None


def _missed(goal: Goal, seen: Summary) -> str:
    if seen.p99_ms is None or seen.accuracy is None:
        return "no request was answered"
    found = f"p99 {seen.p99_ms:.1f} ms, accuracy {seen.accuracy:.3f}, {percent(seen.refused)} refused"
    least = (
        f"p99 at most {goal.p99_ms:g} ms, accuracy at least {goal.accuracy:g}, at most {percent(goal.refused)} refused"
    )
    return f"{found}; expected {least}. Relax the goal, or raise --max-replicas"


def answer(
    simulation: Simulation, goal: Goal, *, most: int, price: float | None, fail: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """All answers, as the `--json` document; `price` is that of a replica for an hour, `fail` the share that dies.

    Raises:
        TooMuchError: `most` replicas do not meet the goal.
    """
    say("finding the number of replicas")
    needed = simulation.needed(goal, most)
    say(f"{needed} replicas; now without brown-out")
    plain = replace(simulation, limits=replace(simulation.limits, brownout=0.0))
    without = _or_none(lambda: plain.needed(goal, most))
    say("finding the largest load for one replica")
    outcome = simulation.run(needed)
    seen = summary(outcome, simulation.traffic.lead, simulation.traffic.seconds)
    factor = simulation.carried_by_one(goal)
    one = None if factor is None else simulation.summary(1, factor=factor).images_per_second
    document: dict[str, Any] = {
        "weights": simulation.costs.name,
        "device": simulation.costs.device,
        "backend": simulation.costs.backend,
        "layout": simulation.costs.layout,
        "routing": simulation.routing,
        "seconds": simulation.traffic.seconds,
        "goal": asdict(goal),
        "replicas": needed,
        "replicas_without_brownout": without,
        "max_replicas": most,
        "expected": asdict(seen),
        "device_busy": outcome.device_busy,
        "bins": bins(outcome, simulation.traffic.seconds),
        "images_per_replica_hour": None if one is None else 3600 * one,
        "price": _prices(price, needed, without, one),
    }
    if fail and needed > 1:
        dying = min(needed - 1, max(1, round(fail * needed)))
        say(f"simulating the loss of {dying} of {needed} replicas")
        broken = simulation.run(needed, failure=Failure(simulation.traffic.seconds / 2, dying))
        document["failure"] = {
            "dying": dying,
            "at": simulation.traffic.seconds / 2,
            "lost": int((broken.columns["status"] == LOST).sum()),
            "before": asdict(summary(broken, simulation.traffic.lead, simulation.traffic.seconds / 2)),
            "after": asdict(summary(broken, simulation.traffic.seconds / 2, simulation.traffic.seconds)),
            "bins": bins(broken, simulation.traffic.seconds),
        }
    return document


def _or_none(call: Callable[[], int]) -> int | None:
    try:
        return call()
    except TooMuchError:
        return None


def _prices(price: float | None, needed: int, without: int | None, one: float | None) -> dict[str, float | None] | None:
    """Of an hour, with and without brown-out, and of a million images on replicas that are as busy as they may be."""
    if price is None:
        return None
    return {
        "hour": price * needed,
        "hour_without_brownout": None if without is None else price * without,
        "million_images": None if one is None else 1e6 * price / (3600 * one),
    }


def bins(outcome: Outcome, seconds: float) -> list[dict[str, Any]]:
    """A run in BINS pieces of time, with the mean brown-out level in each."""
    width = seconds / BINS
    levels: list[list[float]] = [[] for _ in range(BINS)]
    for now, level in outcome.levels:
        levels[min(BINS - 1, math.floor(now / width))].append(level)
    rows = []
    for number, found in enumerate(levels):
        seen = summary(outcome, number * width, (number + 1) * width)
        level = sum(found) / len(found) if found else 0.0
        rows.append({"from": number * width, "level": level, **asdict(seen)})
    return rows
