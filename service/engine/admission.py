"""Who is let in: a limit in images and one in time, for single images and batches alike. Pure: no clock."""

import math
from dataclasses import dataclass
from typing import Literal

from msmlp.service.engine.messages import Load

RETRY_SECONDS = 1, 60
"""The shortest and the longest wait that is asked of a client."""


@dataclass(frozen=True)
class Refusal:
    """Why images are not let in, and after how many seconds they would have been."""

    reason: Literal["capacity", "wait"]
    detail: str
    retry_after: int


class Admission:
    """Counts images in flight, which hold a place each: first while they are decoded, then inside the engine.

    `max_wait` is the longest predicted time to an answer, in seconds, at which images are still let in (0: any).
    `capacity` is set once it is known. `let_in` and `degraded` count all images there have been, and those of them that
    brown-out sent to a cheaper operating point.
    """

    def __init__(self, max_wait: float = 0.0) -> None:
        self.max_wait = max_wait
        self.capacity = 0
        self.inflight = 0
        self.let_in = self.degraded = 0
        self._inside = 0

    def refusal(self, images: int, load: Load) -> Refusal | None:
        """Why `images` more cannot come in now; None when they can. Who finds nobody in flight always can."""
        pace = load.seconds_per_image
        missing = self.inflight + images - self.capacity
        if missing > 0:
            detail = f"{self.inflight} of {self.capacity} places are taken, {images} wanted"
            return Refusal("capacity", detail, _retry_after(missing * pace))
        predicted = self.backlog(load) + images * pace
        if self.inflight and 0 < self.max_wait < predicted:
            allowed = f"allowed: {1e3 * self.max_wait:.0f} ms"
            detail = f"the answer is predicted to take {1e3 * predicted:.0f} ms, {allowed}"
            return Refusal("wait", detail, _retry_after(predicted - self.max_wait))
        return None

    def backlog(self, load: Load) -> float:
        """Predicted seconds of device time until all in flight are answered, those still being decoded included."""
        return load.backlog_seconds + max(0, self.inflight - self._inside) * load.seconds_per_image

    @property
    def share(self) -> float:
        """The share of the places that is taken inside the engine; decoding is no load that brown-out could lower."""
        return self._inside / self.capacity if self.capacity else 0.0

    def take(self, images: int, *, degraded: bool = False) -> None:
        """They are let in."""
        self.inflight += images
        self.let_in += images
        self.degraded += images * degraded

    def give_back(self, images: int) -> None:
        """Their places are free."""
        self.inflight -= images

    def enter(self, images: int) -> None:
        """They are decoded and go into the engine."""
        self._inside += images

    def leave(self, images: int) -> None:
        """They have come out of it."""
        self._inside -= images


def _retry_after(seconds: float) -> int:
    shortest, longest = RETRY_SECONDS
    return min(longest, max(shortest, math.ceil(seconds)))
