"""Gauges: the engine's state and the model's facts, read when Prometheus scrapes."""

import math
import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.messages import Load
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.options import NO_OPTIONS


class Gauges(Collector):
    """Of a cascade whose exits cost `gflops`, cumulative [K]. They show an engine once they `watch` it."""

    def __init__(self, registry: CollectorRegistry, gflops: Sequence[float]) -> None:
        self._gflops = gflops
        self._watched: tuple[AsyncEngine, OperatingPoints] | None = None
        registry.register(self)

    def watch(self, engine: AsyncEngine, points: OperatingPoints) -> None:
        """Show this engine, and the thresholds that these operating points give."""
        self._watched = engine, points

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        yield _gauge("msmlp_exit_gflops", "GFLOPs per image that leaves at an exit.", *self._gflops, label="exit")
        engine, thresholds, load = None, [0.0] * (len(self._gflops) - 1), None
        if self._watched is not None:
            engine, points = self._watched
            thresholds = points.resolve(NO_OPTIONS, engine.brownout_level).parameters.thresholds.tolist()
            load = engine.worker.load
        text = "The default operating point's threshold, brown-out included."
        yield _gauge("msmlp_effective_threshold", text, *thresholds, label="exit")
        yield from _of_engine(engine)
        yield from _of_load(load or Load.none(len(self._gflops)))
        text = "Factor on the predicted time of a batch that deadlines allow for; 19 of 20 batches end within it."
        yield _gauge("msmlp_prediction_margin_ratio", text, load.prediction_margin if load else math.nan)


def _of_engine(engine: AsyncEngine | None) -> Iterator[Metric]:
    up = inflight = permits = backlog = level = rate = 0.0
    if engine is not None:
        up, inflight, permits = float(engine.up), engine.inflight, engine.permits
        backlog, level = engine.backlog_seconds, engine.brownout_level
        rate = engine.throughput.per_second(time.monotonic())
    yield _gauge("msmlp_engine_up", "1 while the engine takes images.", up)
    yield _gauge("msmlp_inflight_images", "Images admitted and not yet answered.", inflight)
    yield _gauge("msmlp_capacity_images", "Images that may be in flight.", permits)
    yield _gauge("msmlp_backlog_seconds", "Predicted device time until all images in flight are answered.", backlog)
    yield _gauge("msmlp_brownout_level", "0 (none) to 8 (the cheapest operating point).", level)
    yield _gauge("msmlp_throughput_images_per_second", "Images answered per second, over the last seconds.", rate)


def _of_load(load: Load) -> Iterator[Metric]:
    now = time.monotonic()
    waits = [max(0.0, now - since) if math.isfinite(since) else 0.0 for since in load.oldest]
    yield _gauge("msmlp_queue_images", "Images waiting for a stage.", *load.queued, label="stage")
    yield _gauge("msmlp_oldest_wait_seconds", "The longest current wait for a stage.", *waits, label="stage")
    text = "Device time of all images run, at full batches; its increase per second is the share of the device in use."
    yield CounterMetricFamily("msmlp_work_seconds", text, load.work_seconds)  # restarts at 0 with the engine


def _gauge(name: str, text: str, *values: float, label: str | None = None) -> Metric:
    """One sample per value, labelled 1, 2, ... if there is a `label`."""
    family = GaugeMetricFamily(name, text, labels=[label] if label else [])
    for number, value in enumerate(values, start=1):
        family.add_metric([str(number)] if label else [], float(value))
    return family
