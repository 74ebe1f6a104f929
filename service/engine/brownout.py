"""Brown-out: under overload, requests move to cheaper operating points before any is refused.

Pure: `now` is a parameter.

It goes by the longest wait, seen or predicted, and keeps four rules:

1. Above `high` the wait demands a level in proportion, the last one well before admission refuses an image (`EARLY`).
2. While the wait stays above `high` and does not drain, the level rises by one every `high` seconds.
3. While the wait stays below `high` / 4 and the load would fit at the next lower level too, the level falls by one
   every `CALM` seconds. To fit is to keep the device busy for less than `FITS` of the time.
4. Once no request has met another for `QUIET` seconds, and the wait has stayed below `high` / 4, the level is 0: there
   is no load, whatever the averages say, that a cheaper operating point could help.

The promise: within any `CALM` seconds of load the level changes direction at most once, and under a constant load it
settles. By rule 3 it never tries a level that it would have to take back, because the costs are known beforehand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = 8
CALM = 2.0
QUIET = 0.5
FITS = 0.85
EARLY = 0.75
"""The share of the longest allowed wait at which the last level is demanded."""
FULL = 0.5
"""Above this share of permits taken, they are as scarce as time; when all are taken, the last level is demanded."""
SMOOTHING = 2.0
"""Seconds over which rates are averaged."""


@dataclass(frozen=True)
class Totals:
    """Counts since the start: seconds of device time, images admitted, and how many of these were degraded."""

    work_seconds: float = 0.0
    images: float = 0
    degraded: float = 0


class Brownout:
    """`level` is 0 (none) to LEVELS.

    `high` is in seconds, 0 turns brown-out off; `max_wait` is where admission refuses (0: never), and `high` is at most
    half of it. `costs` [LEVELS + 1] is the expected cost per image at each level, in any unit.
    """

    def __init__(self, high: float, max_wait: float, costs: Sequence[float]) -> None:
        self.high = min(high, max_wait / 2) if max_wait else high
        self._end = EARLY * max_wait if max_wait else 4 * high  # the wait that demands the last level
        self.level = 0
        self._costs = costs
        self._side = 0
        # When the wait last changed sides or the level last moved, and the wait then.
        self._since = self._wait_then = 0.0
        self._updated, self._totals = -math.inf, Totals()
        self._busy = -math.inf  # when it was last not quiet
        self._load = self._degraded = 0.0

    def update(self, now: float, wait: float, totals: Totals, permits: float, *, quiet: bool = False) -> None:
        """Take in the longest wait in seconds, the totals, and the share of permits taken. Call it often.

        `quiet`: no request has found another in flight since the last call.
        """
        if not self.high:
            return
        self._average(now, totals)
        if permits > FULL:
            wait = max(wait, self.high + (permits - FULL) / (1 - FULL) * (self._end - self.high))
        if not quiet or wait >= self.high / 4:
            self._busy = now
        elif now - self._busy >= QUIET:
            self.level = 0
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
        """Whether the device could carry the load at the next lower level. Only degraded images cost more there."""
        dearer = self._costs[max(0, self.level - 1)] / self._costs[self.level] - 1
        return self._load * (1 + self._degraded * dearer) < FITS

    def _average(self, now: float, totals: Totals) -> None:
        """Recent averages of the device's load and of the share of degraded images."""
        passed, before = now - self._updated, self._totals
        if passed <= 0:
            return
        weight = 1 - math.exp(-passed / SMOOTHING)
        self._load += weight * (max(0.0, totals.work_seconds - before.work_seconds) / passed - self._load)
        images, degraded = totals.images - before.images, totals.degraded - before.degraded
        if images > 0 and degraded >= 0:  # totals fall when a front end ends
            self._degraded += weight * (min(1.0, degraded / images) - self._degraded)
        self._updated, self._totals = now, totals
