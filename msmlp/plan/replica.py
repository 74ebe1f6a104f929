"""One simulated replica: the real engine core, admission and brown-out under a clock of its own.

A replica with `costs.layout` inline has one thread for requests and batches, as an `msmlp serve` on a core of a CPU
has; with process, front ends answer beside an engine that has the device to itself.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msmlp.bench.null_server import NullBackend
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of
from msmlp.model.weights.calibration import Table
from msmlp.plan.costs import Costs
from msmlp.service.engine.admission import Permits
from msmlp.service.engine.core import EngineCore
from msmlp.service.engine.messages import Answers, Load, Outbound, Submit
from msmlp.service.engine.overload import Overload
from msmlp.service.engine.transport import TURN_SECONDS, InTransit
from msmlp.service.errors import OverloadedError
from msmlp.service.operating_points import OperatingPoints, ResolvedPoint
from msmlp.service.options import NO_OPTIONS

BODY_BYTES = 2**11
"""Of a request's image, for the door: a thumbnail."""


@dataclass(frozen=True)
class Limits:
    """`max_wait` and `brownout` in seconds: those of `msmlp serve`."""

    max_wait: float = 2.0
    brownout: float = 0.5


class Request(NamedTuple):
    """When it was sent (seconds) and how many images it has."""

    sent: float
    images: int


class Answer(NamedTuple):
    """A request's end. `latency` in seconds; `exits` sums up, `right` counts images; refused requests have neither.

    `status` is 200, 429 (refused) or 503 (lost with its replica).
    """

    sent: float
    latency: float
    status: int
    images: int
    degraded: bool = False
    right: int = 0
    exits: tuple[int, ...] = ()


@dataclass
class _Pending:
    request: Request
    permits: Permits
    point: ResolvedPoint
    work: float
    submit: Submit
    first: int
    exits: list[tuple[int, int]]


class _Device(NullBackend):
    """Answers from a table of scores; a batch ends when the costs say so."""

    def __init__(self, replica: "Replica", costs: Costs, scores: NDArray[np.float32]) -> None:
        self._replica = replica
        super().__init__(scores, classes=2, image_shape=(1, 1, 3), capacity=costs.permits, max_batch=costs.buckets[-1])
        self.buckets, self.in_flight = costs.buckets, costs.in_flight
        self._seconds = [dict(zip(costs.buckets, row, strict=True)) for row in costs.stage_seconds]
        self._free = 0.0

    def launch(self, stage: int, slots: Slots) -> Any:
        seconds = self._seconds[stage][bucket_of(self.buckets, len(slots))] * self._replica.noise()
        self._free = max(self._replica.now, self._free) + seconds
        self._replica.device_busy += seconds
        return self._free, super().launch(stage, slots)

    def collect(self, handle: Any) -> StageOutput:
        ends, launched = handle
        self._replica.now = max(self._replica.now, ends)
        return super().collect(launched)


class Replica:
    """`table` has the scores and the correctness that its images are drawn from; `points` are its operating points."""

    def __init__(
        self, costs: Costs, table: Table, points: OperatingPoints, limits: Limits, rng: np.random.Generator
    ) -> None:
        order = rng.permutation(len(table.scores))
        self._correct = table.correct[order]
        self._costs, self._points, self._rng = costs, points, rng
        self._jitter = np.exp(costs.spread * rng.standard_normal(1024)).tolist()  # its median is 1
        self.now = self._began = 0.0
        """Of the engine's thread."""
        self._later: Load | None = None
        self.device_busy = self._host_busy = 0.0
        self._fronts = [0.0] * (0 if costs.layout == "inline" else costs.front_ends)
        heapq.heapify(self._fronts)
        self._drawn = self._batches = 0
        self.alive, self.due = True, math.inf
        """`due`: for when the fleet has planned its next turn."""
        self._sent: list[Outbound] = []
        device = _Device(self, costs, table.scores[order])
        seconds = np.array(costs.stage_seconds)
        publish = self._publish if self._fronts else None
        self.core = EngineCore(device, self._sent.append, seconds=seconds, publish=publish, clock=lambda: self.now)
        self.overload = Overload(limits.max_wait, limits.brownout, points.costs())
        self.overload.admission.permits = costs.permits
        self._transit, self._published = InTransit(), self.core.load()
        self._pending: dict[int, _Pending] = {}
        self._inbox: deque[tuple[float, Request]] = deque()  # with the times at which they came
        self._unread = 0  # images in it
        self._arriving: list[tuple[float, int]] = []  # read by a front end then, and on their way to the engine
        self._number = 0
        self.answers: list[Answer] = []

    def noise(self) -> float:
        """The factor on the next batch's time."""
        self._batches += 1
        return float(self._jitter[self._batches % 1024])

    @property
    def load(self) -> Load:
        """As its front end sees it."""
        return self._transit.added_to(self._published)

    @property
    def wait(self) -> float:
        """Predicted seconds until a request that comes now would be answered: what a router may ask for. What waits in
        sockets counts too: a router knows what it has sent."""
        load = self.load
        unread = self._unread * load.seconds_per_image + len(self._inbox) * self._costs.request_seconds
        return self.overload.admission.wait(load) + unread

    @property
    def level(self) -> int:
        """Of brown-out."""
        return self.overload.brownout.level

    def receive(self, request: Request, now: float) -> None:
        """A request has come; a turn must follow. An inline replica reads it then, others at once."""
        if self._fronts:
            self._take(now, request)
        else:
            self._inbox.append((now, request))
            self._unread += request.images

    @property
    def wakes(self) -> float:
        """When it has something to do next; inf while it waits for requests."""
        if self._sent or not self.core.idle:
            return self.now
        if self._inbox:
            return max(self.now, self._inbox[0][0])
        return max(self.now, self._arriving[0][0]) if self._arriving else math.inf

    def look(self, now: float) -> None:
        """What the service does ten times a second."""
        late = max(0.0, (self._fronts[0] if self._fronts else self.now) - now)
        on_loop = self._host_busy if self._fronts else self._host_busy + self.device_busy
        self.overload.admission.look(now + late, on_loop, late)
        self.overload.look(self.load, now + late, float)

    def turn(self, now: float) -> None:
        """One turn of the engine, not before `now`. Inline it is one of the event loop: requests, batches for a moment,
        answers. Else it is a batch, whose answers come with the next turn, at the batch's end.
        """
        if now > self.now:
            idle, self.now = now - self.now, now
            if not self._fronts:
                self._spend(self._costs.wake(idle))
        self._began = self.now
        self._land()
        for _ in range(len(self._inbox)):
            self._take(*self._inbox.popleft())
        self._unread = sum(request.images for _, request in self._inbox)
        while self._arriving and self._arriving[0][0] <= self.now:
            self._submit(heapq.heappop(self._arriving)[1])
        until = self.now + TURN_SECONDS
        while not self.core.idle:
            self.core.run_once()
            self._spend(self._costs.batch_seconds)
            if self._fronts:
                return
            if self.now >= until:
                break
        self._published = self.core.load()
        self._land()

    def die(self, now: float) -> list[Request]:
        """Kill it → the requests that it had not answered by `now`, including those that the turn in progress, which
        runs ahead of the fleet's clock, has answered already."""
        self.alive = False
        late = [each for each in self.answers if each.sent + each.latency > now]
        self.answers = [each for each in self.answers if each.sent + each.latency <= now]
        lost = [Request(each.sent, each.images) for each in late]
        lost += [pending.request for pending in self._pending.values()]
        lost += [request for _, request in self._inbox]
        self._pending.clear()
        self._inbox.clear()
        self._sent.clear()
        return lost

    def _publish(self, load: Load) -> None:
        """Before a batch the front ends see it at once, after one when it has ended."""
        if self.now > self._began:
            self._later = load
        else:
            self._published = load

    def _host(self, since: float, seconds: float) -> float:
        """Work of a front end that can begin at `since` → when it is done."""
        if not self._fronts:
            self._spend(seconds)
            return self.now
        seconds += self._costs.wake(since - self._fronts[0])
        self._host_busy += seconds
        done = max(since, self._fronts[0]) + seconds
        heapq.heapreplace(self._fronts, done)
        return done

    def _spend(self, seconds: float) -> None:
        self.now += seconds
        if not self._fronts:
            self._host_busy += seconds

    def _take(self, came: float, request: Request) -> None:
        overload, costs = self.overload, self._costs
        door, size = overload.admission.door, BODY_BYTES * request.images
        began = max(came, self._fronts[0]) if self._fronts else self.now
        if door.closed(began):
            overload.admission.turn_away(size, began)
            self._refuse(came, request)
            return
        point = self._points.resolve(NO_OPTIONS, overload.level(self.load))
        degraded = point.source == "brownout"
        work = door.enter(size)
        try:
            permits = overload.admit(request.images, self.load, began, float, degraded=degraded)
        except OverloadedError:
            door.leave(work)
            self._refuse(came, request)
            return
        read = self._host(came, costs.request_seconds / 2 + costs.image_seconds * (request.images - 1))
        number, self._number = self._number, self._number + 1
        pixels = np.broadcast_to(np.zeros((), np.uint8), (request.images, 1, 1, 3))
        submit = Submit(number, pixels, point.parameters, read)
        self._pending[number] = _Pending(request, permits, point, work, submit, 0, [])
        overload.admission.inside += request.images
        self._transit.put(submit)
        heapq.heappush(self._arriving, (read, number))

    def _submit(self, number: int) -> None:
        pending = self._pending[number]
        pending.first, self._drawn = self._drawn, self._drawn + pending.request.images
        self.core.receive(pending.submit)

    def _refuse(self, came: float, request: Request) -> None:
        done = self._host(came, self._costs.refusal_seconds)
        self.answers.append(Answer(request.sent, done - request.sent, 429, request.images))

    def _land(self) -> None:
        """Hand out what the engine has said."""
        for message in self._sent:
            if not isinstance(message, Answers):
                continue
            landed = zip(message.request.tolist(), message.index.tolist(), message.exit.tolist(), strict=True)
            for number, index, exit in landed:
                pending = self._pending[number]
                pending.exits.append((index, exit))
                pending.permits.leave(1)
                if len(pending.exits) == pending.request.images:
                    self._answer(self._pending.pop(number))
        self._sent.clear()
        if self._later is not None:
            self._published, self._later = self._later, None

    def _answer(self, pending: _Pending) -> None:
        done = self._host(self.now, self._costs.request_seconds / 2)
        self.overload.admission.door.leave(pending.work)
        request, rows, stages = pending.request, *self._correct.shape
        right = sum(bool(self._correct[(pending.first + index) % rows, exit - 1]) for index, exit in pending.exits)
        counts = [sum(exit == stage for _, exit in pending.exits) for stage in range(1, stages + 1)]
        degraded = pending.point.source == "brownout"
        latency = done - request.sent
        self.answers.append(Answer(request.sent, latency, 200, request.images, degraded, right, tuple(counts)))
