"""What this benchmark is to show, and what it shows.

A ratio is taken within a round, where both servers met the same machine, and its median over the rounds counts.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.measure import Row, medians
from benchmarks.peers.servers import CASCADE, FASTAPI_TWO, LEAST, OUR_SIZES, OURS, OURS_KEYED, PEERS, PLAIN, SHIPPED

SPEED, P99, OUTSIDE = "requests_per_second", "p99_ms", "outside_seconds_per_1000"
BEST = "the best peer"
OUTSIDE_MS = 0.30
MANY = (8, 32, 128)


@dataclass(frozen=True)
class Goal:
    """A figure of our server `of` at each number of connections, relative to the server `over` (None: as it is)."""

    case: str
    figure: str
    over: str | None
    connections: tuple[int, ...]
    wanted: float
    at_least: bool = True
    of: str = OURS

    def met(self, value: float) -> bool:
        return value >= self.wanted if self.at_least else value <= self.wanted

    def __str__(self) -> str:
        names = {SPEED: "requests/s", P99: "p99", OUTSIDE: "ms of CPU per request outside compute"}
        of = "" if self.of == OURS else f" of {self.of},"
        over = f" relative to {self.over}" if self.over else ""
        return f"{self.case}: {names[self.figure]}{of}{over}"


GOALS = (
    Goal(PLAIN, SPEED, LEAST.name, MANY, 0.9),
    Goal(PLAIN, SPEED, BEST, (1,), 1.0),
    Goal(PLAIN, P99, LEAST.name, (1, *MANY), 1.2, at_least=False),
    Goal(CASCADE, SPEED, LEAST.name, MANY, 0.9),
    Goal(CASCADE, P99, LEAST.name, (1, *MANY), 1.2, at_least=False),
    Goal(CASCADE, SPEED, BEST, (8,), 1.15),
    Goal(CASCADE, SPEED, BEST, (32, 128), 1.3),
    Goal(SHIPPED, SPEED, LEAST.name, MANY, 0.75),
    Goal(SHIPPED, SPEED, FASTAPI_TWO, MANY, 1.5),
    *(Goal(case, OUTSIDE, None, (8, 32), OUTSIDE_MS, at_least=False) for case in (PLAIN, CASCADE, SHIPPED)),
    *(Goal(case, SPEED, OURS, (1, *MANY), 0.97, of=OURS_KEYED) for case in (PLAIN, CASCADE, SHIPPED)),
)
FAULTS = ("wrong", "degraded")


def goals(runs: list[Row]) -> list[dict[str, Any]]:
    """Every goal at every number of connections; `measured` and `met` are None where nothing was measured."""
    return [*_measured(runs), *_faults(runs)]


def faults(runs: list[Row]) -> int:
    """Wrong and degraded answers: a run with any compares nothing."""
    return sum(run.get(name, 0) for run in runs for name in FAULTS)


def _measured(runs: list[Row]) -> Iterator[dict[str, Any]]:
    for goal in GOALS:
        for count in goal.connections:
            here = [run for run in runs if (run["case"], run["connections"]) == (goal.case, count)]
            value = _value(goal, here)
            yield {
                "goal": str(goal),
                "connections": count,
                "wanted": f"{'≥' if goal.at_least else '≤'} {goal.wanted:.2f}",
                "measured": None if value is None else round(value, 3),
                "met": None if value is None else goal.met(value),
            }


def _value(goal: Goal, runs: list[Row]) -> float | None:
    ours = _by_round(runs, goal.of, goal.figure)
    if goal.over is None:
        return _median(list(ours.values()))
    theirs = _by_round(runs, _best_peer(runs) if goal.over == BEST else goal.over, goal.figure)
    return _median([value / theirs[number] for number, value in ours.items() if theirs.get(number)])


def _best_peer(runs: list[Row]) -> str:
    """The one with most requests/s in the median; the same one in every round."""
    speeds = {row["server"]: row[SPEED] for row in medians(runs)}
    return max((peer.name for peer in PEERS), key=lambda name: speeds.get(name, 0.0))


def _by_round(runs: list[Row], server: str, figure: str) -> dict[int, float]:
    """In each round; the mean where several such servers took their turn."""
    found = defaultdict[int, list[float]](list)
    for run in runs:
        if run["server"] == server and run[figure] is not None:
            found[run["round"]].append(run[figure])
    return {number: statistics.fmean(values) for number, values in found.items()}


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _faults(runs: list[Row]) -> Iterator[dict[str, Any]]:
    compared = [run for run in runs if "wrong" in run]
    ours = [run for run in compared if run["server"] in OUR_SIZES]
    for name, goal, of in (
        ("degraded", "degraded answers", ours),
        ("wrong", "answers with another label, exit or confidence than the graphs offline, of all servers", compared),
    ):
        count = sum(run[name] for run in of) if of else None
        met = None if count is None else count == 0
        yield {"goal": goal, "connections": None, "wanted": "0", "measured": count, "met": met}
