"""Admission and brown-out together: what a service does when requests arrive faster than it can answer them.

Pure: no clock.
"""

import math
from collections.abc import Callable, Sequence

from msmlp.service.engine.admission import Admission, Permits
from msmlp.service.engine.brownout import Brownout, Totals
from msmlp.service.engine.messages import Load

FROZEN_SECONDS = 1.0
"""After a pause this long the process is assumed to have been frozen, and earlier waits are ignored."""

UPDATE_SECONDS = 0.005
"""The shortest time between two updates of brown-out while most permits are free: at every request, they would cost
more than admission."""

Seconds = Callable[[], float]


class Overload:
    """`max_wait` and `brownout` in seconds, `costs` by brown-out level: those of Admission and Brownout.

    The methods' `decoding` gives the predicted seconds until all that was admitted is decoded; brown-out counts them
    as waiting.
    """

    def __init__(self, max_wait: float, brownout: float, costs: Sequence[float]) -> None:
        self.admission = Admission(max_wait)
        self.brownout = Brownout(brownout, max_wait, costs)
        self._updated = -math.inf
        self._awake = -math.inf  # since when this process has not been stopped

    def admit(self, images: int, load: Load, now: float, decoding: Seconds, *, degraded: bool = False) -> Permits:
        """Permits for `images`; `degraded` if brown-out chose their operating point. Raises OverloadedError."""
        permits = self.admission.admit(images, load, now, degraded=degraded)
        self._update(load, now, decoding)
        return permits

    def level(self, load: Load | None) -> int:
        """The brown-out level of a request that comes now; 0 if the engine is empty, since it does not wait then."""
        return self.brownout.level if load is not None and self.admission.total(load).inflight > 0 else 0

    def look(self, load: Load | None, now: float, decoding: Seconds) -> None:
        """Call it at intervals, after `admission.look`, so that the door opens and brown-out ends without requests."""
        self.admission.door.reopen(self.admission.wait(load) if load is not None else 0.0)
        if load is not None:
            self._update(load, now, decoding)

    def _update(self, load: Load, now: float, decoding: Seconds) -> None:
        admission = self.admission
        if now - self._updated < UPDATE_SECONDS and 2 * admission.inside < admission.permits:
            return
        if now - self._updated > FROZEN_SECONDS:
            self._awake = now
        self._updated = now
        oldest = max(min(load.oldest), self._awake)
        wait = max(now - oldest, admission.wait(load) + decoding())
        counts = admission.total(load)
        totals = Totals(load.work_seconds, counts.admitted, counts.degraded)
        quiet = not admission.met and load.others.inflight <= 0
        self.brownout.update(now, wait, totals, admission.share(load), quiet=quiet)
        admission.met = False
