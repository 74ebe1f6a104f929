"""Brown-out: under overload requests take cheaper operating points before any is refused. Pure: `now` is an argument.

It goes by the longest wait, seen or predicted, and keeps three rules:

1. Above `high` the wait demands a level in proportion, the last one well before admission refuses anybody (`EARLY`).
2. While the wait stays above `high` and is not draining, the level rises by one each `high` seconds.
3. While the wait stays below `high` / 4 and what is offered would fit at the next lower level too, the level falls by
   one each `CALM` seconds. To fit is to keep the device busy for less than `FITS` of the time.

The promise: within any `CALM` seconds the level turns round at most once, and under a constant load it comes to rest.
By rule 3 it never tries a level that it would have to take back: what it costs is known beforehand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = 8
CALM = 2.0
FITS = 0.85
EARLY = 0.75
"""The share of the longest wait allowed, at which the last level is demanded."""
FULL = 0.5
"""From this share of the places on they are as scarce as time; that all are taken demands the last level."""
SMOOTHING = 2.0
"""Seconds over which rates are averaged."""


@dataclass(frozen=True)
class Totals:
    """What only grows: seconds of device time spent, images let in, and how many of these were degraded."""

    work_seconds: float = 0.0
    images: int = 0
    degraded: int = 0


class Brownout:
    """`level` is 0 (none) to LEVELS.

    `high` is in seconds, 0 turns brown-out off; `max_wait` is where admission refuses (0: never), and `high` is at most
    half of it. `costs` [LEVELS + 1] is what an image is expected to cost at each level if it can be degraded, in any
    unit.
    """

    def __init__(self, high: float, max_wait: float = 0.0, costs: Sequence[float] = (1.0,) * (LEVELS + 1)) -> None:
        self.high = min(high, max_wait / 2) if max_wait else high
        self._end = EARLY * max_wait if max_wait else 4 * high  # the wait that demands the last level
        self.level = 0
        self._costs = costs
        self._side = 0
        self._since = self._wait_then = 0.0  # when the wait last changed sides, or the level moved; and the wait then
        self._seen_at, self._totals = -math.inf, Totals()
        self._load = self._degraded = 0.0

    def update(self, now: float, wait: float, totals: Totals, places: float = 0.0) -> None:
        """The longest wait in seconds is known, what has been done so far, and the share of the places that is taken.

        Call it often: the level moves by what is seen.
        """
        if not self.high:
            return
        self._average(now, totals)
        if places > FULL:
            wait = max(wait, self.high + (places - FULL) / (1 - FULL) * (self._end - self.high))
        side = int(wait > self.high) - int(wait < self.high / 4 and self._fits())
        if side != self._side:
            self._side, self._since, self._wait_then = side, now, wait
        passed = now - self._since
        if side > 0:
            self._rise(now, wait, passed)
        elif side < 0 and self.level and passed >= CALM:
            self.level -= 1
            self._since = now

    def _rise(self, now: float, wait: float, passed: float) -> None:
        demanded = int(LEVELS * (wait - self.high) / (self._end - self.high))
        if passed >= self.high:
            drains = self._wait_then - wait >= (1 - FITS) * passed
            demanded = max(demanded, self.level + (not drains))
            self._since, self._wait_then = now, wait
        self.level = min(LEVELS, max(self.level, demanded))

    def _fits(self) -> bool:
        """Whether the device would do at the next lower level. Only what was degraded costs more there."""
        dearer = self._costs[max(0, self.level - 1)] / self._costs[self.level] - 1
        return self._load * (1 + self._degraded * dearer) < FITS

    def _average(self, now: float, totals: Totals) -> None:
        """The device's load, and the share of degraded images, lately."""
        passed, before = now - self._seen_at, self._totals
        if passed <= 0:
            return
        weight = 1 - math.exp(-passed / SMOOTHING)
        self._load += weight * (max(0.0, totals.work_seconds - before.work_seconds) / passed - self._load)
        if images := totals.images - before.images:
            self._degraded += weight * ((totals.degraded - before.degraded) / images - self._degraded)
        self._seen_at, self._totals = now, totals
