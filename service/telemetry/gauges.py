"""What is read when it is scraped: the engine's state and work, and facts of the model."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from msmlp.service.engine.async_engine import Engine
from msmlp.service.engine.transport import Handle
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.options import NO_OPTIONS


class Gauges:
    """Of a cascade whose exits cost `gflops`, cumulative [K]; they show an engine once they `watch` it."""

    def __init__(self, registry: CollectorRegistry, gflops: Sequence[float]) -> None:
        r = registry
        self._stages = len(gflops)
        self._queued = Gauge("msmlp_queue_images", "Images waiting for a stage.", ["stage"], registry=r)
        self._oldest = Gauge(
            "msmlp_oldest_wait_seconds", "The longest present wait for a stage.", ["stage"], registry=r
        )
        self._inflight = Gauge("msmlp_inflight_images", "Images admitted and not yet answered.", registry=r)
        self._capacity = Gauge("msmlp_capacity_images", "Images that may be in flight.", registry=r)
        self._backlog = Gauge(
            "msmlp_backlog_seconds", "Predicted device time until all images in flight are answered.", registry=r
        )
        self._threshold = Gauge(
            "msmlp_effective_threshold", "The default policy's threshold, brown-out included.", ["exit"], registry=r
        )
        self._brownout = Gauge("msmlp_brownout_level", "0 none ... 8 the cheapest operating point.", registry=r)
        self._prediction_margin = Gauge(
            "msmlp_prediction_margin_ratio",
            "Factor on the predicted time of a batch that deadlines allow for; 19 of 20 batches end within it.",
            registry=r,
        )
        self._throughput = Gauge(
            "msmlp_throughput_images_per_second", "Images answered a second, last seconds.", registry=r
        )
        self._work = _Work()
        r.register(self._work)
        self._engine_up = Gauge("msmlp_engine_up", "1 while the engine takes images.", registry=r)
        cost = Gauge("msmlp_exit_gflops", "GFLOPs of an image that leaves at an exit.", ["exit"], registry=r)
        for exit, spent in enumerate(gflops, start=1):
            cost.labels(exit).set(spent)

    def watch(self, engine: Engine, points: OperatingPoints) -> None:
        """Show this engine, and the thresholds that these operating points give."""
        worker = engine.worker
        self._capacity.set_function(lambda: engine.capacity)
        self._inflight.set_function(lambda: engine.inflight)
        self._backlog.set_function(lambda: engine.backlog_seconds)
        self._work.seconds = lambda: worker.load.work_seconds if worker.load else 0.0
        self._throughput.set_function(lambda: engine.throughput.per_second(time.monotonic()))
        self._engine_up.set_function(lambda: float(engine.up))
        self._brownout.set_function(lambda: engine.brownout_level)
        self._prediction_margin.set_function(lambda: worker.load.prediction_margin if worker.load else math.nan)
        for k in range(self._stages):
            self._queued.labels(k + 1).set_function(partial(_queued, worker, k))
            self._oldest.labels(k + 1).set_function(partial(_age, worker, k))
        for k in range(self._stages - 1):
            self._threshold.labels(k + 1).set_function(partial(_effective_threshold, engine, points, k))


class _Work(Collector):
    """A counter that is read, not counted here; it begins anew with the engine."""

    def __init__(self) -> None:
        self.seconds: Callable[[], float] = lambda: 0.0

    def collect(self) -> Iterator[Metric]:
        """What a scrape reads."""
        text = "Device time that what was run takes in full batches; a second of it is the share of the device in use."
        yield CounterMetricFamily("msmlp_work_seconds", text, self.seconds())


def _effective_threshold(engine: Engine, points: OperatingPoints, exit: int) -> float:
    return float(points.resolve(NO_OPTIONS, engine.brownout_level).exits.thresholds[exit])


def _queued(worker: Handle, stage: int) -> float:
    load = worker.load
    return 0.0 if load is None else float(load.queued[stage])


def _age(worker: Handle, stage: int) -> float:
    load = worker.load
    since = math.inf if load is None else load.oldest[stage]
    return max(0.0, time.monotonic() - since) if math.isfinite(since) else 0.0
