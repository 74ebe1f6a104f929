"""Prometheus metrics: counters and histograms as things happen, gauges of the engine and the model at every scrape."""

import math
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import accumulate
from operator import add
from threading import Lock
from typing import Any, TypeVar

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
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from msmlp.model.exits.rule import Reason
from msmlp.model.preprocess import FORMATS
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.messages import (
    Cancelled,
    Failed,
    Invalid,
    Load,
    Outbound,
    Ran,
    Ready,
    Shadowed,
    history_floats,
)
from msmlp.service.engine.result import REASONS, Result
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.options import NO_OPTIONS
from msmlp.service.telemetry.gauges import (
    Engines,
    engine_gauges,
    engine_metrics,
    load_gauges,
    log_lines_dropped,
    own_engine_metrics,
    reading,
)
from msmlp.service.telemetry.record import INFERENCES, STREAM, RequestRecord

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MARGINS = (-5.0, -1.0, -0.2, -0.05, -0.02, -0.01, -0.005, 0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOGETHER, AT_MOST = 256, 2048
"""Requests that are counted together, and images or batches: counting them takes milliseconds."""
SHADOWS = 1000
"""The newest shadows of an exit, over which its agreement is computed."""
STATUSES = (200, 429, 499, 500, 503, 504)
"""Statuses of valid requests to classify."""

PHASES = ("idle", "head", "body", "request", "answer")
"""What connections wait for: the next request, its head, its body, the application, the client that reads."""

NO_EXIT = "none"
"""The exit of an image that expired before it reached one."""
SCORES = tuple(round(0.05 * i, 2) for i in range(1, 21))


Item = TypeVar("Item")

# Otherwise every counter exports a second series, the time of its creation.
disable_created_metrics()


RELOADS = "done", "bad_weights", "insufficient_memory", "failed"
"""How a load of new weights can end: the values of the label `outcome`."""
RELOADS_TEXT = "Loads of new weights, by how they ended."


class Metrics(Collector):
    """One registry per service, for a cascade whose exits cost `gflops`, cumulative [K].

    Label values come from the code, never from a client.
    """

    def __init__(self, gflops: Sequence[float], name: str, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        self._watched: tuple[AsyncEngine, OperatingPoints] | None = None
        self._engines: Engines | None = None
        self._gflops, self._name, self._version = gflops, name, version
        self._stages = len(gflops)
        self.decode_backlog: Callable[[], float] = float
        self.executions = 0
        """Batches that the first stage has run."""

        # Counted later, many together: one by one that costs more than the JSON of the answers.
        self._requests: deque[tuple[str, int, float]] = deque()
        self._batches: deque[Ran] = deque()
        self._answers: deque[tuple[Any, ...]] = deque()
        self._decoded: deque[tuple[str, float]] = deque()
        self._spent = self._expected = 0.0
        self._images = 0
        self._shadows: dict[int, deque[bool]] = {}
        # Label values are bounded, and looking a child up costs as much as counting.
        self._child: Callable[..., Any] = cache(lambda metric, *values: metric.labels(*values))
        self._create(range(1, len(gflops) + 1))
        self._begin_at_zero()

    def _create(self, exits: Sequence[int]) -> None:
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        by_label = partial(LabelledHistogram, registry=self.registry, bounds=SECONDS)

        self.requests = counter("msmlp_requests", "Requests answered.", ["route", "status"])
        self.request_seconds = by_label("msmlp_request_seconds", "Arrival to answer.", "route", list(INFERENCES))
        self.images = counter("msmlp_images", "Images answered.", ["exit", "reason"])
        text = "Arrival to the answer of an image."
        self.image_seconds = by_label("msmlp_image_seconds", text, "exit", [*exits, NO_EXIT])
        text = "Decoding of a picture by a decoder thread, from its bytes to the model's size, by format."
        kinds = [*map(str.lower, FORMATS), "pixels"]
        self.decode_seconds = by_label("msmlp_decode_seconds", text, "format", kinds)
        text = "Time that an image waited for a stage."
        self.queue_seconds = by_label("msmlp_stage_queue_seconds", text, "stage", exits)
        self.compute_seconds = by_label("msmlp_stage_compute_seconds", "Duration of a batch.", "stage", exits)
        text = "Images in a batch, without padding."
        self.batch_size = by_label("msmlp_stage_batch_size", text, "stage", exits, bounds=SIZES)
        self.confidence = by_label("msmlp_confidence", "Confidence of answers.", "exit", exits, bounds=SCORES)
        self.gflops = counter("msmlp_gflops", "GFLOPs spent on answered images.")
        self.gflops_saved = counter("msmlp_gflops_saved", "GFLOPs that the whole cascade would have cost in addition.")
        self.gflops_expected = counter(
            "msmlp_gflops_expected", "GFLOPs that calibration expects answered images to cost."
        )
        text = (
            "Refused: images at full capacity or for too long a wait, requests at the door (before their body is read),"
            " for lack of memory and beyond the limits of their key."
        )
        self.shed = counter("msmlp_shed", text, ["reason"])
        text = (
            "Share of early answers that the last exit agrees with, among the newest ones run to the end; "
            "NaN before the first."
        )
        self.agreement = gauge("msmlp_shadow_agreement", text, ["exit"])
        self.invalid = counter("msmlp_invalid_scores", "Images that failed because a score was not a number.")
        self.cancelled = counter("msmlp_cancelled", "Images whose client had left, by where they were.", ["where"])
        self.deadline = counter("msmlp_deadline", "Images with a deadline, by outcome.", ["outcome"])
        text = "Deadline of an image minus the time of its answer; negative if it was late."
        self.margin = Histogram("msmlp_deadline_margin_seconds", text, registry=self.registry, buckets=MARGINS)
        self.connections = gauge("msmlp_connections", "Open HTTP connections.")
        self.capacity_connections = gauge("msmlp_capacity_connections", "HTTP connections that may be open.")
        text = "Connections closed for lack of room: new ones, and silent ones in favour of new ones."
        self.connections_refused = counter("msmlp_connections_refused", text)
        text = "TLS handshakes that failed, or took too long."
        self.handshakes_failed = counter("msmlp_tls_handshakes_failed", text)
        text = "Connections and requests ended because they took too long, by what was waited for."
        self.timeouts = counter("msmlp_timeouts", text, ["phase"])
        # The supervisor counts them, if there is one.
        counter("msmlp_frontend_restarts", "Front ends that died and were started anew.")
        reloads = counter("msmlp_reloads", RELOADS_TEXT, ["outcome"])
        for outcome in RELOADS:
            reloads.labels(outcome)
        labels = ["name", "version", "backend", "device"]
        self.model_info = gauge("msmlp_model_info", "The model served.", labels)

    def _begin_at_zero(self) -> None:
        """Create every known series: one that first appears with an event hides that event from rates."""
        for exit in range(1, self._stages + 1):
            for reason in ("confident", "max_exit", "deadline") if exit < self._stages else ("final",):
                self.images.labels(exit, reason)
            if exit < self._stages:
                self.agreement.labels(exit).set(math.nan)
        self.images.labels(NO_EXIT, "expired")
        for route in INFERENCES:
            for status in STATUSES:
                self.requests.labels(route, status)
        for reason in ("capacity", "wait", "door", "memory", "key"):
            self.shed.labels(reason)
        for where in ("decode", "queue", "batch"):
            self.cancelled.labels(where)
        for phase in PHASES:
            self.timeouts.labels(phase)
        for outcome in ("met", "late", "cut_short", "expired"):
            self.deadline.labels(outcome)

    def watch(self, engine: AsyncEngine, points: OperatingPoints) -> None:
        self._watched = engine, points

    def watch_engines(self, engines: Engines) -> None:
        """Show engines in processes, which this process hosts."""
        self._engines = engines

    def observe(self, message: Outbound) -> None:
        if isinstance(message, Ready):
            self.model_info.labels(self._name, self._version, message.backend, message.device).set(1)
        elif isinstance(message, Ran):
            self.executions += message.stage == 0
            self._batches.append(message)
            if len(self._batches) >= AT_MOST:
                self._count()
        elif isinstance(message, Cancelled):
            self.cancelled.labels(message.where).inc(message.images)
        elif isinstance(message, Invalid):
            self.invalid.inc(message.images)
        elif isinstance(message, Failed) and message.shed:
            self.shed.labels("capacity").inc(message.shed)
        elif isinstance(message, Shadowed):
            for exit, agreed in zip(message.exit.tolist(), message.agreed.tolist(), strict=True):
                newest = self._shadows.setdefault(exit, deque(maxlen=SHADOWS))
                newest.append(agreed)
                self.agreement.labels(exit).set(sum(newest) / len(newest))

    def shadows(self) -> dict[int, tuple[int, int]]:
        """By exit, how many of its newest shadows agreed with the last exit, and how many there are."""
        return {exit: (sum(newest), len(newest)) for exit, newest in self._shadows.items()}

    def ended(self, record: RequestRecord) -> None:
        # A gRPC stream lasts as long as its client likes, and its requests have records of their own.
        seconds = math.nan if record.method == STREAM else record.seconds
        self._requests.append((record.route, record.status, seconds))
        if len(self._requests) >= TOGETHER:
            self._count()

    def answered(
        self, result: Result, record: RequestRecord, deadline: float, *, spent: float, expected: float
    ) -> None:
        """Images of a request were answered; they cost `spent` GFLOPs. `deadline` is inf without one."""
        columns = result.exit, result.reason, result.landed, history_floats(result.history)
        self._answers.append((*columns, record.arrival, deadline))
        self._spent += spent
        self._expected += expected
        self._images += len(result.exit)
        if self._images >= AT_MOST or len(self._answers) >= TOGETHER:
            self._count()

    def decoded(self, took: list[tuple[str, float]]) -> None:
        """Pictures of a request were decoded by the decoder threads: the format of each, and its seconds."""
        self._decoded.extend(took)
        if len(self._decoded) >= TOGETHER:
            self._count()

    def _count(self) -> None:
        """Count what has happened since the last call."""
        if requests := _taken(self._requests):
            for labels, number in Counts((route, status) for route, status, _ in requests).items():
                self._child(self.requests, *labels).inc(number)
            if timed := [(route, seconds) for route, _, seconds in requests if not math.isnan(seconds)]:
                rows = [self.request_seconds.row(route) for route, _ in timed]
                self.request_seconds.observe(np.array(rows), np.array([seconds for _, seconds in timed]))
        if batches := _taken(self._batches):
            stages = np.array([batch.stage for batch in batches])
            self.compute_seconds.observe(stages, np.array([batch.seconds for batch in batches]))
            self.batch_size.observe(stages, np.array([batch.images for batch in batches]))
        if decoded := _taken(self._decoded):
            rows = [self.decode_seconds.row(kind.lower()) for kind, _ in decoded]
            self.decode_seconds.observe(np.array(rows), np.array([seconds for _, seconds in decoded]))
        self._images = 0
        if answers := _taken(self._answers):
            self._count_images(answers)

    def _count_images(self, rows: list[tuple[Any, ...]]) -> None:
        sizes = [len(row[0]) for row in rows]
        exit, reason, landed, history = (np.concatenate([row[column] for row in rows]) for column in range(4))
        arrival, deadline = (np.repeat([row[column] for row in rows], sizes) for column in (4, 5))
        for (left, why), number in Counts(zip(exit.tolist(), reason.tolist(), strict=True)).items():
            self._child(self.images, left or NO_EXIT, REASONS[why]).inc(number)
        spent, expected, self._spent, self._expected = self._spent, self._expected, 0.0, 0.0
        self.gflops.inc(spent)
        self.gflops_saved.inc(max(0.0, self._gflops[-1] * len(exit) - spent))
        self.gflops_expected.inc(expected)
        self.image_seconds.observe(exit - 1, landed - arrival)
        images, stages = np.nonzero(np.arange(self._stages) < exit[:, None])
        self.queue_seconds.observe(stages, history[images, stages, 2])
        reached = exit.nonzero()[0]
        last = exit[reached] - 1
        self.confidence.observe(last, history[reached, last, 1])
        timed = np.flatnonzero(deadline < math.inf)
        margins = (deadline[timed] - landed[timed]).tolist()
        for outcome, number in Counts(map(_outcome, reason[timed].tolist(), margins)).items():
            self.deadline.labels(outcome).inc(number)
        for margin in margins:
            self.margin.observe(margin)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        self._count()  # the registry asks this collector before those it counts with
        text = "Predicted seconds until all that was admitted is decoded."
        yield reading("msmlp_decode_backlog_seconds", text, self.decode_backlog())
        yield reading("msmlp_exit_gflops", "GFLOPs per image that leaves at an exit.", *self._gflops, label="exit")
        engine, thresholds, load = None, [0.0] * (len(self._gflops) - 1), None
        if self._watched is not None:
            engine, points = self._watched
            thresholds = points.resolve(NO_OPTIONS, engine.brownout.level).parameters.thresholds.tolist()
            load = engine.worker.load
        text = "The default operating point's threshold, brown-out included."
        yield reading("msmlp_effective_threshold", text, *thresholds, label="exit")
        yield from engine_gauges(engine, load)
        if self._engines is not None:
            yield from engine_metrics(self._engines)
        else:
            yield from own_engine_metrics(engine)
        yield from load_gauges(load or Load.none(len(self._gflops)))
        yield log_lines_dropped()
        text = "Factor on the predicted time of a batch that deadlines allow for; 19 of 20 batches end within it."
        yield reading("msmlp_prediction_margin_ratio", text, load.prediction_margin if load else math.nan)


def _outcome(reason: int, margin: float) -> str:
    if reason == Reason.EXPIRED:
        return "expired"
    if margin < 0:
        return "late"
    return "cut_short" if reason == Reason.DEADLINE else "met"


def _taken(waiting: deque[Item]) -> list[Item]:
    """All that waits, taken out; others may append meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]


class LabelledHistogram(Collector):
    """A histogram with one label, whose `values` are there from the start; `bounds` are upper edges, without inf.

    It takes many observations per call. The library's own takes one.
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
        self._rows = {str(value): row for row, value in enumerate(values)}
        self._bounds = tuple(bounds)
        self._edges = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
        self._counts = [[0] * len(self._edges) for _ in values]
        self._sums = [0.0] * len(values)
        self._lock = Lock()
        registry.register(self)

    def row(self, value: str) -> int:
        """The position of a label value, which may be new."""
        found = self._rows.get(value)
        if found is None:
            with self._lock:
                found = self._rows[value] = len(self._rows)
                self._counts.append([0] * len(self._edges))
                self._sums.append(0.0)
        return found

    def observe(self, rows: NDArray[np.int64], amounts: NDArray[np.floating]) -> None:
        """Count each of `amounts` under the label value whose position is in `rows`; -1 is the last.

        An amount on an edge counts below it.
        """
        values, edges = len(self._rows), len(self._edges)
        buckets = np.searchsorted(self._bounds, amounts.astype(np.float64), side="left")
        rows = rows % values
        counts = np.bincount(rows * edges + buckets, minlength=values * edges).reshape(values, edges).tolist()
        sums = np.bincount(rows, weights=amounts, minlength=values).tolist()
        with self._lock:
            for row, (more, amount) in enumerate(zip(counts, sums, strict=True)):
                self._counts[row] = list(map(add, self._counts[row], more))
                self._sums[row] += amount

    def collect(self) -> Iterator[HistogramMetricFamily]:
        with self._lock:
            values, counts, sums = list(self._rows), [list(accumulate(row)) for row in self._counts], list(self._sums)
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, below, total in zip(values, counts, sums, strict=True):
            family.add_metric([value], buckets=list(zip(self._edges, below, strict=True)), sum_value=total)
        yield family
