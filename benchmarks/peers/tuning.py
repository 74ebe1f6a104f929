"""Each peer's settings, chosen as a careful user would: one thing after the other, by what it serves."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peers.servers import Tuning

BETTER = 1.03
"""So much faster a change has to be to be taken; less is noise."""


def tune(
    start: Tuning, steps: Iterable[Iterable[Tuning]], measure: Callable[[Tuning], float]
) -> tuple[Tuning, list[dict[str, Any]]]:
    """The best settings, and everything that was tried with its requests a second.

    Each step has alternatives to the best settings so far, and the fastest of them is kept.
    """
    best, speed = start, measure(start)
    tried = [{"settings": start, "requests_per_second": round(speed, 1)}]
    for alternatives in steps:
        before = best
        for change in alternatives:
            settings = {**before, **change}
            found = measure(settings)
            tried.append({"settings": settings, "requests_per_second": round(found, 1)})
            if found > BETTER * speed:
                best, speed = settings, found
    return best, tried
