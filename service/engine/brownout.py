"""Brown-out: under overload requests take cheaper operating points before any is refused. Pure: `now` is an argument.

The level rises by one while the oldest wait stays above `high`, one step each `high` seconds, and falls by one while it
stays below `high` / 4, one step each `CALM` seconds: rising is quick, falling slow, and between the two it stays.
"""

LEVELS = 8
CALM = 2.0


class Brownout:
    """`level` is 0 (none) to LEVELS. `high` is in seconds; 0 turns brown-out off."""

    def __init__(self, high: float) -> None:
        self.high = high
        self.level = 0
        self._since: float | None = None  # when the wait last changed sides, or the level last moved
        self._side = 0

    def update(self, now: float, oldest_wait: float) -> None:
        """The oldest wait, in seconds, is known; call it often, as the level moves by what is seen."""
        if not self.high:
            return
        side = int(oldest_wait > self.high) - int(oldest_wait < self.high / 4)
        if side != self._side or self._since is None:
            self._side, self._since = side, now
        step = self.high if side > 0 else CALM
        steps = int((now - self._since) / step) if side else 0
        if steps:
            self.level = min(LEVELS, max(0, self.level + side * steps))
            self._since += steps * step
