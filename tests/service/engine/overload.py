"""A server under a load, in discrete time: arrivals, a queue, the real admission and the real brown-out."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from msmlp.service.engine.admission import Admission, Permits
from msmlp.service.engine.brownout import Brownout, Totals
from msmlp.service.engine.messages import Load
from msmlp.service.errors import OverloadedError

STEP = 1 / 64  # seconds; sums of it are exact
STEPS_A_LOOK = 8
PACE = 1000.0
"""Images per second that the server does at level 0."""


@dataclass
class Waiting:
    """A request in the queue: when it came, its permits, and the device seconds it still needs."""

    since: float
    permits: Permits
    images: int
    seconds: float


@dataclass(frozen=True)
class Look:
    """What was seen when brown-out looked."""

    now: float
    level: int
    wait: float
    shed: int


class Server:
    """Does `PACE` images per second, and more at higher levels by their `costs`; a share of requests is degradable."""

    def __init__(
        self,
        costs: Sequence[float],
        *,
        high: float = 0.5,
        max_wait: float = 2.0,
        permits: int = 1_000_000,
        degradable: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._seconds = np.array(costs) / costs[0] / PACE
        self._brownout, self._admission = Brownout(high, max_wait, costs), Admission(max_wait)
        self._admission.permits = permits
        self._degradable, self._random = degradable, np.random.default_rng(seed)
        self._queue: deque[Waiting] = deque()
        self._backlog, self._work, self.now, self.shed = 0.0, 0.0, 0.0, 0

    def run(self, seconds: float, load: float, *, request: int = 8, poisson: bool = False) -> list[Look]:
        """Offer `load` times what level 0 can do, in requests of `request` images, evenly or at random."""
        looks, owed = [], 0.0
        for step in range(round(seconds / STEP)):
            self.now += STEP
            mean = load * PACE * STEP / request
            owed += self._random.poisson(mean) if poisson else mean
            while owed >= 1:
                owed -= 1
                self._arrive(request)
            self._serve()
            if step % STEPS_A_LOOK == 0:
                self._look()
                looks.append(Look(self.now, self._brownout.level, self._wait(), self.shed))
        return looks

    def _arrive(self, images: int) -> None:
        can_be = self._random.random() < self._degradable
        level = self._brownout.level if can_be and self._queue else 0
        seconds = images * float(self._seconds[level])
        degraded = level > 0
        try:
            permits = self._admission.admit(images, self._load(seconds / images), degraded=degraded)
        except OverloadedError:
            self.shed += images
            return
        self._admission.inside += images
        self._queue.append(Waiting(self.now, permits, images, seconds))
        self._backlog += seconds
        self._look()

    def _serve(self) -> None:
        left = STEP
        while self._queue and left > 0:
            first = self._queue[0]
            done = min(left, first.seconds)
            left, first.seconds = left - done, first.seconds - done
            self._backlog, self._work = self._backlog - done, self._work + done
            if not first.seconds:
                self._queue.popleft()
                first.permits.leave(first.images)

    def _load(self, seconds_per_image: float = 0.0) -> Load:
        return replace(Load.none(1), backlog_seconds=self._backlog, seconds_per_image=seconds_per_image)

    def _wait(self) -> float:
        oldest = self.now - self._queue[0].since if self._queue else 0.0
        return max(oldest, self._admission.backlog(self._load()))

    def _look(self) -> None:
        totals = Totals(self._work, self._admission.admitted, self._admission.degraded)
        share, quiet = self._admission.share(self._load()), not self._admission.met
        self._brownout.update(self.now, self._wait(), totals, share, quiet=quiet)
        self._admission.met = False
