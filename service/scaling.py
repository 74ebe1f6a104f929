"""How many replicas a load needs, and where they are. It runs in Ray's own processes, without the service.

Pure. The number follows the predicted backlog in seconds and the busiest resource of each replica, not a count of
requests: eight small ones may be hardly any load, and one of 1,024 images is. It keeps three rules:

1. It rises while the mean wait is above its target, or the mean replica is busy for more than `BUSY` of the time: in
   proportion, to twice as many at most. What has not reported counts as idle: it does not rise twice for one load.
2. It falls once every replica has reported a wait below a quarter of the target, to as many as the load would keep busy
   for `FITS` of the time.
3. Otherwise it stays. `FITS` is below `BUSY`: what rule 2 chooses is never too few by rule 1, so that a constant load
   leads to one number.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

WAIT, BUSY_SHARE = "msmlp_wait_seconds", "msmlp_busy_share"
"""The names under which replicas report."""

BUSY, FITS = 0.8, 0.6
MOST = 2.0
"""The largest factor of one step up."""

CALM = 0.25
"""Below this share of the target a wait counts as zero."""

KEPT_SECONDS = 10.0
"""How long an address stays listed after its replica was last heard of."""


class Report(NamedTuple):
    """`wait`: predicted seconds until all that a replica has taken is answered; `busy`: for which share of the time its
    busiest resource is, 0 to 1.
    """

    wait: float
    busy: float


def wanted(reports: Sequence[Report | None], target: int, target_wait: float) -> int:
    """The number of replicas for a load, 1 or more.

    Args:
        reports: of each replica that runs; None for one that has not reported yet.
        target: the number wanted so far; some may still be starting.
        target_wait: in seconds, above 0.
    """
    running, known = len(reports), [each for each in reports if each is not None]
    if not known:
        return target
    busy, wait = sum(each.busy for each in known), sum(each.wait for each in known)
    pressure = max(busy / running / BUSY, wait / running / target_wait)
    if pressure > 1:
        return max(target, math.ceil(running * min(pressure, MOST)))
    if len(known) == running and max(each.wait for each in known) <= CALM * target_wait:
        return min(target, max(1, math.ceil(busy / FITS)))
    return target


class Policy:
    """`wanted` as Ray's autoscaler calls it (`AutoscalingConfig.policy`); the bounds and the delays are Ray's."""

    def __init__(self, target_wait: float) -> None:
        self._target_wait = target_wait

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Take Ray's AutoscalingContext → the number of replicas, and no state."""
        metrics = context.aggregated_metrics or {}
        waits, busy = metrics.get(WAIT, {}), metrics.get(BUSY_SHARE, {})
        reports = [
            Report(waits[each], busy[each]) if each in waits and each in busy else None
            for each in context.running_replicas
        ]
        return wanted(reports, context.target_num_replicas, self._target_wait), {}


class Addresses:
    """Where replicas can be reached without Ray's proxy: an actor to which every replica reports its address
    every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[str, float]] = {}

    def put(self, replica: str, url: str) -> None:
        """A replica is at `url`."""
        self._heard[replica] = url, self._clock()

    def remove(self, replica: str) -> None:
        """A replica is about to end."""
        self._heard.pop(replica, None)

    def all(self) -> list[str]:
        """In a fixed order, so that clients see what has changed."""
        oldest = self._clock() - KEPT_SECONDS
        self._heard = {name: (url, heard) for name, (url, heard) in self._heard.items() if heard >= oldest}
        return sorted(url for url, _ in self._heard.values())
