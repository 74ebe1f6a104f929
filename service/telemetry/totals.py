"""What several processes of one service report as one: snapshots of their metrics and statistics, and the sums."""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from msmlp.service.telemetry.metrics import Metrics
from msmlp.service.telemetry.record import Statistics

Merge = Callable[[list[float]], float]
Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample, and its labels."""

RULES: dict[str, Merge] = {
    "msmlp_backlog_seconds": max,  # engines work side by side
    "msmlp_brownout_level": max,
    "msmlp_decode_backlog_seconds": max,
    "msmlp_effective_threshold": min,  # that of the highest brown-out level
    "msmlp_engine_heartbeat_age_seconds": max,
    "msmlp_engine_process_max_fds": max,
    "msmlp_engine_process_start_time_seconds": max,
    "msmlp_engine_up": max,
    "msmlp_exit_gflops": max,
    "msmlp_loop_lag_seconds": max,
    "msmlp_model_info": max,
    "msmlp_oldest_wait_seconds": max,
    "msmlp_prediction_margin_ratio": max,
    "process_max_fds": max,
    "process_start_time_seconds": max,
}
"""How the values of a metric in several processes become one; NaN is no value. All others are added up."""
ENGINES = "msmlp_engines"
WORK = "msmlp_work_seconds"
"""Its increase per second is the share of all devices in use."""
AGREEMENT = "msmlp_shadow_agreement"
"""It is computed anew, over the newest shadows of all processes."""
SHARED = ("msmlp_capacity_images", "msmlp_engine_", "msmlp_engines", "msmlp_queue_images", "msmlp_work_seconds")
"""What so begins is the engine's own: every process that uses the same one tells the same; the largest is taken."""

OWN = -1
"""The index of the process that adds up; those of others are not negative."""


@dataclass(frozen=True)
class Snapshot:
    """What a process has counted until `taken` (monotonic seconds).

    `shadows` has, by exit, how many of the newest shadows agreed, and how many there are; `executions` are batches
    that the first stage has run.
    """

    pid: int
    taken: float
    metrics: list[Metric]
    shadows: dict[int, tuple[int, int]]
    statistics: Statistics
    executions: int


def take_snapshot(metrics: Metrics, statistics: Statistics) -> Snapshot:
    """About 2 ms, and 40 kB pickled. On the event loop's thread, on which requests are counted."""
    copy = Statistics()
    copy.add(statistics)
    collected = list(metrics.registry.collect())
    return Snapshot(os.getpid(), time.monotonic(), collected, metrics.shadows(), copy, metrics.executions)


@dataclass
class _Process:
    """The newest values of a living process. `offsets`: what a counter had reached when it began again at 0."""

    newest: Snapshot
    gauges: dict[Series, float] = field(default_factory=dict)
    counters: dict[Series, float] = field(default_factory=dict)
    offsets: dict[Series, float] = field(default_factory=dict)


class Totals(Collector):
    """Sums over the living processes of a service and those that died.

    `shared_engine`: all use the same engine. Else each of `number` processes has its own, beside the others.
    """

    def __init__(self, *, shared_engine: bool = False, number: int = 1) -> None:
        self._shared = SHARED if shared_engine else ()
        self._side_by_side = 1 if shared_engine else number
        self._known: dict[str, tuple[Metric, dict[Series, None]]] = {}
        self._living: dict[int, _Process] = {}
        self._dead: dict[int, Snapshot] = {}  # the last of each index
        self._leaving: set[int] = set()
        self._base: dict[Series, float] = {}
        self._shown: dict[Series, float] = {}
        self._statistics, self._executions = Statistics(), 0

    def update(self, index: int, snapshot: Snapshot) -> None:
        """The process at `index` has sent a snapshot; one with another pid has replaced the process before it."""
        if index in self._dead and self._dead[index].pid == snapshot.pid:
            return  # it was on its way
        if index in self._living and self._living[index].newest.pid != snapshot.pid:
            self.retire(index)
        process = self._living.setdefault(index, _Process(snapshot))
        if snapshot.taken >= process.newest.taken:
            process.newest = snapshot
            self._read(process)
            if index in self._leaving:
                process.gauges = {}

    def leave(self, index: int) -> None:
        """The process at `index` serves nothing new from now on: its gauges vanish, what it still counts is counted."""
        self._leaving.add(index)
        if process := self._living.get(index):
            process.gauges = {}

    def arrive(self, index: int) -> None:
        """A process at `index` serves from now on, whatever became of the one before it."""
        self._leaving.discard(index)

    def retire(self, index: int) -> None:
        """The process at `index` has died, if there was one: what it counted stays, its gauges vanish."""
        self._leaving.discard(index)
        if process := self._living.pop(index, None):
            for metric, all_series in self._known.values():
                for series in all_series.keys() & process.counters.keys():
                    self._base[series] = self._merge(metric, (self._base.get(series, 0.0), process.counters[series]))
            self._dead[index] = process.newest
            self._statistics.add(process.newest.statistics)
            self._executions += process.newest.executions

    def statistics(self) -> Statistics:
        """Their sum, whose document also needs `executions`."""
        summed = Statistics()
        for each in (self._statistics, *(process.newest.statistics for process in self._living.values())):
            summed.add(each)
        return summed

    @property
    def executions(self) -> int:
        """Batches that first stages have run."""
        return self._executions + sum(process.newest.executions for process in self._living.values())

    def render(self, extra: Iterable[Metric] = ()) -> bytes:
        """In Prometheus' text format. `extra` metrics, the caller's own, count like those of one more process."""
        snapshot = Snapshot(os.getpid(), 0.0, list(extra), {}, Statistics(), 0)
        own = self._living.setdefault(OWN, _Process(snapshot))
        own.newest = snapshot
        self._read(own)
        return generate_latest(self)

    def collect(self) -> list[Metric]:
        return [self._sum(metric, known) for metric, known in self._known.values()]

    def _read(self, process: _Process) -> None:
        process.gauges = {}
        for metric in process.newest.metrics:
            _, known = self._known.setdefault(metric.name, (metric, {}))
            for sample in metric.samples:
                series = sample.name, tuple(sample.labels.items())
                known[series] = None
                if metric.type == "gauge":
                    process.gauges[series] = sample.value
                elif sample.value or self._owns(process) or not metric.name.startswith(self._shared):
                    self._count(process, metric, series, sample.value)

    def _owns(self, process: _Process) -> bool:
        """Whether it hosts the engines: at 0 another process sees none, but to this one new engines have come."""
        return process is self._living.get(OWN)

    def _count(self, process: _Process, metric: Metric, series: Series, value: float) -> None:
        """A counter that falls began again at 0 with its engine; it goes on from where it was."""
        before = process.counters.get(series)
        if before is None and metric.name.startswith(self._shared):  # what earlier engines did is counted already
            process.offsets[series] = max(0.0, self._counted(metric, series) - value)
        elif before is not None and process.offsets.get(series, 0.0) + value < before:
            process.offsets[series] = before
        process.counters[series] = process.offsets.get(series, 0.0) + value

    def _merge(self, metric: Metric, values: Iterable[float]) -> float:
        rule = max if metric.name.startswith(self._shared) else RULES.get(metric.name, math.fsum)
        return rule([value for value in values if not math.isnan(value)] or [math.nan])

    def _counted(self, metric: Metric, series: Series) -> float:
        """Never less than before: rounding could let a sum fall when a process dies, as if it had restarted."""
        counts = (process.counters.get(series, 0.0) for process in self._living.values())
        counted = self._merge(metric, (self._base.get(series, 0.0), *counts))
        if metric.name == WORK:
            counted /= self._side_by_side
        self._shown[series] = max(counted, self._shown.get(series, 0.0))
        return self._shown[series]

    def _sum(self, metric: Metric, known: Iterable[Series]) -> Metric:
        summed = Metric(metric.name, metric.documentation, metric.type)
        for series in known:
            gauges = [process.gauges[series] for process in self._living.values() if series in process.gauges]
            if metric.name == ENGINES and self._shared and OWN in self._living:
                gauges = [self._living[OWN].gauges[series]]  # others may not know yet how their engine is
            if metric.type != "gauge":
                summed.add_sample(series[0], dict(series[1]), self._counted(metric, series))
            elif gauges:
                value = self._agreement(series) if metric.name == AGREEMENT else self._merge(metric, gauges)
                summed.add_sample(series[0], dict(series[1]), value)
        return summed

    def _agreement(self, series: Series) -> float:
        exit = int(dict(series[1])["exit"])
        current = (process for index, process in self._living.items() if index not in self._leaving)
        shadows = [process.newest.shadows.get(exit, (0, 0)) for process in current]
        agreed, number = map(sum, zip(*shadows, strict=True))
        return agreed / number if number else math.nan
