"""Admission: a limit on images in flight and a limit on the predicted wait. Pure: no clock."""

import math
from dataclasses import dataclass
from typing import Literal

from msmlp.service.engine.messages import Load

RETRY_SECONDS = 1, 60
"""The shortest and the longest Retry-After of a refusal."""


@dataclass(frozen=True)
class Refusal:
    """Why images are refused, and after how many seconds they would be admitted."""

    reason: Literal["capacity", "wait"]
    detail: str
    retry_after: int


class Admission:
    """Counts permits: an image holds one from admission to its answer, first while it is decoded, then in the engine.

    `max_wait` is the longest predicted time to an answer, in seconds, at which images are admitted (0: no limit).
    `permits` is how many there are, 0 until the engine says so. `admitted` and `degraded` count all images since the
    start, and those of them that brown-out moved to a cheaper operating point.
    """

    def __init__(self, max_wait: float = 0.0) -> None:
        self.max_wait = max_wait
        self.permits = 0
        self.inflight = 0
        self.admitted = self.degraded = 0
        self._inside = 0

    def refusal(self, images: int, load: Load) -> Refusal | None:
        """Why `images` more are refused now, None when they are not. With nothing in flight, time is no reason."""
        pace = load.seconds_per_image
        missing = self.inflight + images - self.permits
        if missing > 0:
            detail = f"the service is full: {self.inflight} of {self.permits} images in flight, {images} more requested"
            return Refusal("capacity", detail, _retry_after(missing * pace))
        predicted = self.backlog(load) + images * pace
        if self.inflight and 0 < self.max_wait < predicted:
            detail = f"the predicted wait is {1e3 * predicted:.0f} ms, the limit {1e3 * self.max_wait:.0f} ms"
            return Refusal("wait", detail, _retry_after(predicted - self.max_wait))
        return None

    def backlog(self, load: Load) -> float:
        """Predicted seconds of device time until all images in flight are answered, undecoded ones included."""
        return load.backlog_seconds + max(0, self.inflight - self._inside) * load.seconds_per_image

    @property
    def share(self) -> float:
        """The share of permits held by images in the engine; brown-out makes nothing decode faster."""
        return self._inside / self.permits if self.permits else 0.0

    def acquire(self, images: int, *, degraded: bool = False) -> None:
        """Take permits; ask `refusal` first."""
        self.inflight += images
        self.admitted += images
        self.degraded += images * degraded

    def release(self, images: int) -> None:
        """Return permits."""
        self.inflight -= images

    def enter(self, images: int) -> None:
        """Images are decoded and go to the engine."""
        self._inside += images

    def leave(self, images: int) -> None:
        """Images come out of the engine."""
        self._inside -= images


def _retry_after(seconds: float) -> int:
    shortest, longest = RETRY_SECONDS
    return min(longest, max(shortest, math.ceil(seconds)))
