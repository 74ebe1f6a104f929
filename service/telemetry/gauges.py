"""Metrics that are read when somebody scrapes: the state of engines, of what waits for them, and of the log."""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.messages import Load
from msmlp.service.logs import dropped_lines

CPU = "cpu_seconds"


class Engines(Protocol):
    """Engines in processes of their own."""

    @property
    def states(self) -> Sequence[str]:
        """Of each: up, restarting or out."""

    @property
    def pids(self) -> Sequence[int]:
        """Their processes."""

    @property
    def cpu_seconds(self) -> dict[int, float]:
        """By process, also of those that have ended, as last read here."""

    @property
    def restarts(self) -> int: ...


def log_lines_dropped() -> Metric:
    """Of this process."""
    text = "Lines of the log that stderr did not take at once: nobody reads it, or its disk is full."
    return CounterMetricFamily("msmlp_log_lines_dropped", text, dropped_lines())


def engine_gauges(engine: AsyncEngine | None, load: Load | None) -> Iterator[Metric]:
    up = inflight = permits = backlog = level = rate = age = lag = work = 0.0
    if engine is not None:
        up, inflight, permits = float(engine.up), engine.admission.inflight, engine.admission.permits
        backlog, level = engine.admission.backlog(load) if load else 0.0, engine.brownout.level
        rate, age = engine.throughput.per_second(time.monotonic()), engine.heartbeat_age
        lag, work = engine.admission.door.lag, engine.admission.door.work
    yield reading("msmlp_engine_up", "1 while the engine takes images.", up)
    text = "Since the last sign of life of the engine; 0 before the first."
    yield reading("msmlp_engine_heartbeat_age_seconds", text, age)
    yield reading("msmlp_frontends_ready", "Processes that take images.", up)
    yield reading("msmlp_inflight_images", "Images admitted and not yet answered.", inflight)
    yield reading("msmlp_capacity_images", "Images that may be in flight.", permits)
    yield reading("msmlp_backlog_seconds", "Predicted device time until all images in flight are answered.", backlog)
    yield reading("msmlp_loop_lag_seconds", "How late the event loop has been in the last second.", lag)
    yield reading("msmlp_body_work", "Bodies read and not answered yet, by their bytes; a request counts 1,024.", work)
    yield reading("msmlp_brownout_level", "0 (none) to 8 (the cheapest operating point).", level)
    yield reading("msmlp_throughput_images_per_second", "Images answered per second, over the last seconds.", rate)


def own_engine_metrics(engine: AsyncEngine | None) -> Iterator[Metric]:
    """Of an engine in this process, which cannot restart."""
    states = [] if engine is None else ["up" if engine.up else "out" if engine.down else "restarting"]
    yield from (_states(states), _restarts(0))


def engine_metrics(engines: Engines) -> Iterator[Metric]:
    """Of engines in processes; the resources of these together are `msmlp_engine_process_...`."""
    yield from (_states(engines.states), _restarts(engines.restarts))
    resources: dict[str, list[Metric]] = {}
    for pid in engines.pids:
        # Registered nowhere: it is asked here.
        for metric in ProcessCollector(namespace="msmlp_engine", pid=partial(str, pid), registry=None).collect():
            resources.setdefault(metric.name, []).append(metric)
            if metric.name.endswith(CPU):
                engines.cpu_seconds[pid] = metric.samples[0].value
    for name, (family, *more) in resources.items():
        values = [each.samples[0].value for each in (family, *more)]
        if name.endswith(CPU):  # it must not fall when one of them dies
            values = [*engines.cpu_seconds.values()]
        value = min(values) if name.endswith("start_time_seconds") else sum(values)  # the start is that of the first
        family.samples = [family.samples[0]._replace(value=value)]
        yield family


def _restarts(number: int) -> Metric:
    return CounterMetricFamily("msmlp_engine_restarts", "Restarts of the engine's process after it died.", number)


def _states(states: Sequence[str]) -> Metric:
    text = "Engines, one per device: in service, starting, or ended for good."
    family = GaugeMetricFamily("msmlp_engines", text, labels=["state"])
    for state in ("up", "restarting", "out"):
        family.add_metric([state], states.count(state))
    return family


def load_gauges(load: Load) -> Iterator[Metric]:
    now = time.monotonic()
    waits = [max(0.0, now - since) if math.isfinite(since) else 0.0 for since in load.oldest]
    yield reading("msmlp_queue_images", "Images waiting for a stage.", *load.queued, label="stage")
    yield reading("msmlp_oldest_wait_seconds", "The longest current wait for a stage.", *waits, label="stage")
    text = "Device time of all images run, at full batches; its increase per second is the share of the device in use."
    yield CounterMetricFamily("msmlp_work_seconds", text, load.work_seconds)  # restarts at 0 with the engine


def reading(name: str, text: str, *values: float, label: str | None = None) -> Metric:
    """One sample per value, labelled 1, 2, ... if there is a `label`."""
    family = GaugeMetricFamily(name, text, labels=[label] if label else [])
    for number, value in enumerate(values, start=1):
        family.add_metric([str(number)] if label else [], float(value))
    return family
