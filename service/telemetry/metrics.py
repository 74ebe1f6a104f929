"""Prometheus metrics."""

import math
from bisect import bisect_left
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from operator import add
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.async_engine import Engine
from msmlp.service.engine.messages import Cancelled, Died, Outbound, Ran, Ready, Shadowed
from msmlp.service.engine.result import Result
from msmlp.service.operating_points import Policy
from msmlp.service.telemetry.gauges import Gauges
from msmlp.service.telemetry.record import INFERENCES, Account

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MARGINS = (-5.0, -1.0, -0.2, -0.05, -0.02, -0.01, -0.005, 0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MANY = 128
"""Images from which on numpy's calls cost less than a round for each."""
SHADOWS = 1000
"""So many of the newest shadows of an exit make its agreement."""
REASONS = {int(r): r.name.lower() for r in Reason}
STATUSES = (200, 429, 499, 500, 503, 504)
"""What requests to classify may come to by no fault of their own."""

NO_EXIT = "none"
"""The exit of an image that expired before it reached one."""
SCORES = tuple(round(0.05 * i, 2) for i in range(1, 21))


# Every counter would come with a second series that nobody reads.
disable_created_metrics()


class Metrics:
    """One registry a service, of a cascade whose exits cost `gflops`, cumulative [K].

    Label values come from the code, never from a client.
    """

    def __init__(self, gflops: Sequence[float], name: str, version: str) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        self._gauges = Gauges(r, gflops)
        self._name, self._version = name, version
        self._stages = stages = len(gflops)
        self.executions = 0
        """Batches that the first stage has run."""

        self._shadows: dict[int, deque[bool]] = {}
        self._child = cache(_labelled)  # values are bounded, and looking them up costs as much as counting
        exits = range(1, stages + 1)
        self.requests = Counter("msmlp_requests", "Requests answered.", ["route", "status"], registry=r)
        self.request_seconds = Histogram(
            "msmlp_request_seconds", "Arrival to answer.", ["route"], registry=r, buckets=SECONDS
        )
        self.images = Counter("msmlp_images", "Images answered.", ["exit", "reason"], registry=r)
        self.image_seconds = Histograms(
            "msmlp_image_seconds",
            "Arrival to an image's answer.",
            "exit",
            [*exits, NO_EXIT],
            bounds=SECONDS,
            registry=r,
        )
        self.queue_seconds = Histograms(
            "msmlp_stage_queue_seconds", "An image's wait for a stage.", "stage", exits, bounds=SECONDS, registry=r
        )
        self.compute_seconds = Histogram(
            "msmlp_stage_compute_seconds", "One batch of a stage.", ["stage"], registry=r, buckets=SECONDS
        )
        self.batch_size = Histogram(
            "msmlp_stage_batch_size", "Images in a batch, padding not counted.", ["stage"], registry=r, buckets=SIZES
        )
        self.confidence = Histograms(
            "msmlp_confidence", "Confidence of answers.", "exit", exits, bounds=SCORES, registry=r
        )
        self.gflops = Counter("msmlp_gflops", "GFLOPs spent on answered images.", registry=r)
        self.gflops_saved = Counter("msmlp_gflops_saved", "GFLOPs the whole cascade would have cost more.", registry=r)
        self.gflops_expected = Counter(
            "msmlp_gflops_expected", "GFLOPs that calibration expects of answered images.", registry=r
        )
        self.shed = Counter(
            "msmlp_shed",
            "Not admitted: images for want of places or of time, requests for want of memory.",
            ["reason"],
            registry=r,
        )
        self.agreement = Gauge(
            "msmlp_shadow_agreement",
            "Share of early answers that the last exit agrees with, of the newest ones run to the end; NaN before any.",
            ["exit"],
            registry=r,
        )
        self.cancelled = Counter("msmlp_cancelled", "Images nobody waited for any more.", ["where"], registry=r)
        self.deadline = Counter(
            "msmlp_deadline", "Images with a deadline, by what came of it.", ["outcome"], registry=r
        )
        self.margin = Histogram(
            "msmlp_deadline_margin_seconds",
            "An image's deadline less its answer: below 0 it was late.",
            registry=r,
            buckets=MARGINS,
        )
        self.restarts = Counter(
            "msmlp_engine_restarts", "Times that the engine's process had died and was started anew.", registry=r
        )
        self.model_info = Gauge(
            "msmlp_model_info", "The model served.", ["name", "version", "backend", "device"], registry=r
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Every series that can be foreseen: one that first appears with an event hides that event from rates."""
        for exit in range(1, self._stages + 1):
            for reason in ("confident", "max_exit", "deadline") if exit < self._stages else ("final",):
                self.images.labels(exit, reason)
            for by_stage in (self.compute_seconds, self.batch_size):
                by_stage.labels(exit)
            if exit < self._stages:
                self.agreement.labels(exit).set(math.nan)
        self.images.labels(NO_EXIT, "expired")
        for route in INFERENCES:
            self.request_seconds.labels(route)
            for status in STATUSES:
                self.requests.labels(route, status)
        for reason in ("capacity", "wait", "memory"):
            self.shed.labels(reason)
        for where in ("decode", "queue", "batch"):
            self.cancelled.labels(where)
        for outcome in ("met", "late", "cut_short", "expired"):
            self.deadline.labels(outcome)

    def watch(self, engine: Engine, policy: Policy) -> None:
        """Tie the gauges to what they show; read when scraped."""
        self._gauges.watch(engine, policy)

    def watch_process(self, pid: Callable[[], int | None]) -> None:
        """Show what the engine's own process uses, as `msmlp_engine_process_...`; nothing while there is none."""
        ProcessCollector(namespace="msmlp_engine", pid=lambda: str(pid()), registry=self.registry)

    def observe(self, message: Outbound) -> None:
        """What the engine says of itself and its batches."""
        if isinstance(message, Ready):
            self.model_info.labels(self._name, self._version, message.backend, message.device).set(1)
        elif isinstance(message, Ran):
            self.executions += message.stage == 0
            self._child(self.compute_seconds, message.stage + 1).observe(message.seconds)
            self._child(self.batch_size, message.stage + 1).observe(message.images)
        elif isinstance(message, Cancelled):
            self.cancelled.labels(message.where).inc(message.images)
        elif isinstance(message, Died) and message.restarting:
            self.restarts.inc()
        elif isinstance(message, Shadowed):
            for exit, agreed in zip(message.exit.tolist(), message.agreed.tolist(), strict=True):
                newest = self._shadows.setdefault(exit, deque(maxlen=SHADOWS))
                newest.append(agreed)
                self.agreement.labels(exit).set(sum(newest) / len(newest))

    def ended(self, account: Account) -> None:
        """A request is over, whatever came of it."""
        self._child(self.requests, account.route, account.status).inc()
        self._child(self.request_seconds, account.route).observe(account.seconds)

    def answered(self, result: Result, gflops: list[float], arrival: float, deadline: float) -> float:
        """Images of a request were answered → the GFLOPs that this has cost.

        `gflops` is cumulative per exit, `deadline` inf without one (monotonic seconds).
        """
        left, reasons = result.exit.tolist(), result.reason.tolist()
        spent = 0.0
        for (exit, reason), number in Counts(zip(left, reasons, strict=True)).items():
            spent += number * gflops[exit - 1] if exit else 0.0
            self._child(self.images, exit or NO_EXIT, REASONS[reason]).inc(number)
        self.gflops.inc(spent)
        self.gflops_saved.inc(gflops[-1] * len(left) - spent)
        if len(left) < MANY:
            self._observe_each(result, left, arrival)
        else:
            self._observe_together(result, arrival)
        if deadline < math.inf:
            for reason, landed in zip(reasons, result.landed.tolist(), strict=True):
                self.deadline.labels(_outcome(reason, landed, deadline)).inc()
                self.margin.observe(deadline - landed)
        return spent

    def _observe_each(self, result: Result, exits: list[int], arrival: float) -> None:
        self.image_seconds.observe([exit - 1 for exit in exits], (result.landed - arrival).tolist())
        for exit, stages in zip(exits, result.history.measured.tolist(), strict=True):
            if exit:
                self.confidence.observe((exit - 1,), (stages[exit - 1][1],))
                self.queue_seconds.observe(range(exit), [seconds for _, _, seconds, _ in stages[:exit]])

    def _observe_together(self, result: Result, arrival: float) -> None:
        self.image_seconds.observe_many(result.exit - 1, result.landed - arrival)
        images, stages = np.nonzero(np.arange(self._stages) < result.exit[:, None])
        self.queue_seconds.observe_many(stages, result.history.queue_seconds[images, stages])
        reached = result.exit.nonzero()[0]
        last = result.exit[reached] - 1
        self.confidence.observe_many(last, result.history.confidence[reached, last])

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self.registry)


def _labelled(metric: Any, *values: object) -> Any:
    return metric.labels(*values)


def _outcome(reason: int, landed: float, deadline: float) -> str:
    if reason == Reason.EXPIRED:
        return "expired"
    if landed > deadline:
        return "late"
    return "cut_short" if reason == Reason.DEADLINE else "met"


# FROM service/telemetry/metrics.py:
# Histograms that take many observations at once; what Prometheus reads is as the library's own writes it.


class Histograms(Collector):
    """One histogram for every value of a label, all there from the start; `bounds` are upper edges, inf not named.

    The library's own takes one observation a call, which for requests of many images costs more than their JSON.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        values: Sequence[object],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._values = [str(value) for value in values]
        self._bounds = tuple(bounds)
        self._edges = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
        self._counts = [[0] * len(self._edges) for _ in values]
        self._sums = [0.0] * len(values)
        self._lock = Lock()
        registry.register(self)

    def observe(self, rows: Iterable[int], amounts: Iterable[float]) -> None:
        """Each of `amounts` belongs to the label's value of that number in `rows`, where -1 is the last."""
        bounds, counts, sums = self._bounds, self._counts, self._sums
        with self._lock:
            # For one image and for hundreds alike, quicker than numpy, whose calls cost more than a few dozen rounds.
            for row, amount in zip(rows, amounts, strict=True):
                counts[row][bisect_left(bounds, amount)] += 1  # an amount on an edge belongs below it
                sums[row] += amount

    def observe_many(self, rows: NDArray[np.int64], amounts: NDArray[np.floating]) -> None:
        """The same for some hundreds or more: numpy takes no time for each."""
        values, edges = len(self._values), len(self._edges)
        places = np.searchsorted(self._bounds, amounts.astype(np.float64), side="left")
        rows = rows % values
        counts = np.bincount(rows * edges + places, minlength=values * edges).reshape(values, edges).tolist()
        sums = np.bincount(rows, weights=amounts, minlength=values).tolist()
        with self._lock:
            for row, (more, amount) in enumerate(zip(counts, sums, strict=True)):
                self._counts[row] = list(map(add, self._counts[row], more))
                self._sums[row] += amount

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape reads."""
        with self._lock:
            counts, sums = [list(accumulate(row)) for row in self._counts], list(self._sums)
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, below, total in zip(self._values, counts, sums, strict=True):
            family.add_metric([value], buckets=list(zip(self._edges, below, strict=True)), sum_value=total)
        yield family
