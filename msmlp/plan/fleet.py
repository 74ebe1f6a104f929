"""A fleet of replicas under a traffic: which replica gets a request, and which die. Discrete events on one clock."""

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import OptionError
from msmlp.plan.replica import Answer, Replica, Request
from msmlp.service.engine.heartbeat import LOOK_SECONDS

Routing = Literal["random", "two-choices", "least-wait"]
LOST = 503
"""The status of a request that died with its replica."""
ROUTINGS: tuple[Routing, ...] = ("random", "two-choices", "least-wait")


@dataclass(frozen=True)
class Failure:
    """`replicas` die at second `at` and lose their unanswered requests; as many new ones start at `back`."""

    at: float
    replicas: int
    back: float = math.inf


@dataclass
class Outcome:
    """What became of all requests, in the order of their answers; brown-out levels by second, the mean of the fleet."""

    answers: list[Answer] = field(default_factory=list)
    levels: list[tuple[float, float]] = field(default_factory=list)
    device_busy: float = 0.0
    """The share of the time that devices worked."""

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The answers as columns, by when they were sent; `exits` [requests, K] is 0 without an answer."""
        names = ("sent", "latency", "status", "images", "degraded", "right")
        columns = {name: np.array([getattr(each, name) for each in self.answers]) for name in names}
        exits = max((len(each.exits) for each in self.answers), default=0)
        none = (0,) * exits
        rows = [each.exits or none for each in self.answers]
        return columns | {"exits": np.array(rows, dtype=np.int64).reshape(len(rows), exits)}

    def between(self, since: float, until: float) -> dict[str, NDArray[Any]]:
        """The columns of requests sent in `since` to `until`, in seconds."""
        first, last = np.searchsorted(self.columns["sent"], (since, until))
        return {name: column[first:last] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Summary:
    """Of all requests sent in a span of time. Latencies are those of answers with 200; None without one. `accuracy` is
    the share of right answers, `exit_share` [K] that of the images that left at each exit.
    """

    requests: int
    images_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    accuracy: float | None
    exit_share: tuple[float, ...]
    degraded: float
    refused: float
    lost: int


def summary(outcome: Outcome, since: float, until: float) -> Summary:
    """Of the requests sent in `since` to `until`, in seconds."""
    found = outcome.between(since, until)
    status, images = found["status"], found["images"]
    good = status == 200
    answered = int(images[good].sum()) if len(status) else 0
    latency = 1e3 * found["latency"][good] if answered else np.zeros(0)
    p50, p99 = (float(np.percentile(latency, each)) if answered else None for each in (50, 99))
    return Summary(
        requests=len(status),
        images_per_second=answered / (until - since),
        p50_ms=p50,
        p99_ms=p99,
        accuracy=float(found["right"][good].sum()) / answered if answered else None,
        exit_share=tuple((found["exits"][good].sum(axis=0) / answered).tolist()) if answered else (),
        degraded=float(images[good & (found["degraded"] > 0)].sum()) / answered if answered else 0.0,
        refused=float((status == 429).mean()) if len(status) else 0.0,
        lost=int((status == LOST).sum()),
    )


class Fleet:
    """`build` makes a replica. Routers know a replica's predicted wait at once; a dead one gets nothing more. A proxy
    has one thread, which `proxy` seconds per request keep busy, half of them before the replica and half after; an
    answer comes `proxy_latency` seconds later than by that work."""

    def __init__(
        self,
        build: Callable[[], Replica],
        replicas: int,
        routing: Routing = "two-choices",
        failure: Failure | None = None,
        rng: np.random.Generator | None = None,
        proxy: float = 0.0,
        proxy_latency: float = 0.0,
    ) -> None:
        if failure is not None and failure.replicas >= replicas:
            raise OptionError(
                "--fail", f"{failure.replicas} of {replicas} replicas would die; expected at most {replicas - 1}"
            )
        self._build, self._routing, self._failure, self._proxy = build, routing, failure, proxy
        self._later = proxy / 2 + proxy_latency
        self._rng = rng or np.random.default_rng(0)
        self._replicas = [build() for _ in range(replicas)]
        self._dead: list[Replica] = []
        self._events: list[tuple[float, int, Replica | None]] = []
        self._counted = 0

    def run(self, requests: Iterable[Request], seconds: float) -> Outcome:
        """Until all were answered; `seconds` is how long they come."""
        outcome, coming = Outcome(), iter(requests)
        request, looks, proxied = next(coming, None), LOOK_SECONDS, 0.0
        failure = self._failure
        dies, back = (failure.at, failure.back) if failure else (math.inf, math.inf)
        while True:
            wakes = self._events[0][0] if self._events else math.inf
            sent = math.inf if request is None else max(request.sent, proxied) + self._proxy / 2
            now = min(wakes, sent, looks, dies, back)
            if request is None and not self._events:
                break
            if now == sent:
                assert request is not None
                proxied = sent + self._proxy / 2
                self._send(request, now)
                request = next(coming, None)
            elif now == wakes:
                self._wake(heapq.heappop(self._events))
            elif now == dies:
                assert failure is not None
                dies = math.inf
                self._kill(failure.replicas, now, outcome)
            elif now == back:
                assert failure is not None
                back = math.inf
                self._replicas += [self._build() for _ in range(failure.replicas)]
            else:
                looks += LOOK_SECONDS
                for replica in self._replicas:
                    replica.look(now)
                outcome.levels.append((now, sum(each.level for each in self._replicas) / len(self._replicas)))
        for replica in [*self._replicas, *self._dead]:
            outcome.answers += [each._replace(latency=each.latency + self._later) for each in replica.answers]
        outcome.answers.sort(key=lambda answer: answer.sent)
        last = max([seconds, *(each.now for each in self._replicas)])
        outcome.device_busy = sum(each.device_busy for each in self._replicas) / (last * len(self._replicas))
        return outcome

    def _send(self, request: Request, now: float) -> None:
        replica = self._choose()
        replica.receive(request, now)
        self._schedule(replica)

    def _choose(self) -> Replica:
        replicas = self._replicas
        if len(replicas) == 1:
            return replicas[0]
        if self._routing == "least-wait":
            return min(replicas, key=lambda each: each.wait)
        first = int(self._rng.integers(0, len(replicas)))
        if self._routing == "random":
            return replicas[first]
        second = (first + int(self._rng.integers(1, len(replicas)))) % len(replicas)
        return min(replicas[first], replicas[second], key=lambda each: each.wait)

    def _schedule(self, replica: Replica) -> None:
        if (wakes := replica.wakes) < replica.due:
            replica.due = wakes
            self._counted += 1
            heapq.heappush(self._events, (wakes, self._counted, replica))

    def _wake(self, event: tuple[float, int, Any]) -> None:
        now, _, replica = event
        if replica.alive and now == replica.due:  # else it has had an earlier turn
            replica.due = math.inf
            replica.turn(now)
            self._schedule(replica)

    def _kill(self, count: int, now: float, outcome: Outcome) -> None:
        for replica in self._replicas[-count:]:
            lost = replica.die(now)
            outcome.answers += [Answer(each.sent, now - each.sent, LOST, each.images) for each in lost]
        self._dead += self._replicas[-count:]
        del self._replicas[-count:]
