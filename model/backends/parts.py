"""Work in equal parts, beside each other on all cores.

A batch of the networks here is better cut by images than by operations: threads inside operations meet at the end of
each of a hundred, and whoever has lost its core for a moment keeps all others waiting there. Parts meet once, and
whoever is free takes the next. A small part also stays in a core's cache, where a whole batch does not.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from msmlp.model.cores import cores

SMALL, LARGE = 4, 8
"""Images of a part: fewer cost more an image, as does a batch of 64 (docs/backends.md has the times)."""

FEW = 4
"""So many small parts at least may run beside each other; a batch of more images is cut into large ones."""


def part_of(bucket: int, threads: int) -> int:
    """Images of every part of a bucket: all parts are alike, so that an image's place changes no bit."""
    return min(bucket, SMALL if bucket <= SMALL * max(FEW, threads) else LARGE)


class Crew:
    """As many threads as the process has cores, the caller's own among them."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` of all, the caller's included; without it as many as there are cores."""
        self.threads = threads or cores()
        others = self.threads - 1
        self._pool = ThreadPoolExecutor(others, thread_name_prefix="msmlp-stage") if others else None

    def run(self, work: Callable[[int], None], parts: int) -> None:
        """`work(0)` to `work(parts - 1)`, each once; raises what the first to fail raised, when all have ended."""
        numbers = iter(range(parts))
        helpers = min(self.threads, parts) - 1
        helping = [self._pool.submit(_take, work, numbers) for _ in range(helpers) if self._pool]
        try:
            _take(work, numbers)
        finally:
            failures = [each.exception() for each in helping]
        for failure in failures:
            if failure is not None:
                raise failure


def _take(work: Callable[[int], None], numbers: Iterator[int]) -> None:
    for number in numbers:  # a range's iterator gives every number to one thread only
        work(number)
