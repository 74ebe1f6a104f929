"""When a call is tried again, and after how long: no network, no sleep, so that both clients follow the same."""

import random
import time
from collections.abc import Callable

from msmlp.errors import ServiceError

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds; without Retry-After a wait doubles from the first to the longest, and is shortened by a random part."""


class Attempts:
    """The attempts of one call: at most `retries` after the first, none begun later than `timeout` seconds after it.

    `clock` gives seconds, `chance` numbers in [0, 1).
    """

    def __init__(
        self,
        retries: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._retries, self._made = retries, 0
        self._clock, self._chance = clock, chance
        self._end = clock() + timeout

    @property
    def left(self) -> float:
        """Seconds until the call's end, never less than a millisecond."""
        return max(0.001, self._end - self._clock())

    @property
    def over(self) -> bool:
        """Whether the call has taken all its time."""
        return self._clock() >= self._end

    def wait_after(self, error: ServiceError) -> float:
        """Seconds to wait before the next attempt; raises `error` when there is to be none."""
        again = error.code == "unreachable" or error.status in (429, 503)
        wait = self._backoff() if error.retry_after is None else error.retry_after
        if not again or self._made >= self._retries or wait >= self._end - self._clock():
            raise error
        self._made += 1
        return wait

    def _backoff(self) -> float:
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0**self._made) * (1 - self._chance() / 2)
