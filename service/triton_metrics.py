"""Triton's metrics by Triton's names, from our counts: its dashboards and autoscaling queries work unchanged."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from msmlp.service.telemetry.statistics import OTHER, REASONS, Statistics

Labels = dict[str, str]


class TritonMetrics(Collector):
    """`nv_inference_*` of one model: `executions` are its first stage's batches so far, `pending` the requests inside.

    Its counters are written without a type: this format's end in `_total`, which Triton's do not.
    """

    def __init__(
        self, model: Labels, statistics: Statistics, executions: Callable[[], int], pending: Callable[[], int]
    ) -> None:
        self._labels = {"model": model["name"], "version": model["version"]}
        self._statistics, self._executions, self._pending = statistics, executions, pending

    def collect(self) -> Iterator[Metric]:
        """What a scrape reads."""
        said = self._statistics
        yield self._counter("request_success", "Requests answered.", said.counts["success"])
        yield self._failures()
        yield self._counter("count", "Images answered.", said.images)
        yield self._counter("exec_count", "Batches that the first stage has run.", self._executions())
        for name, duration, text in (
            ("request", "success", "from arrival to answer"),
            ("queue", "queue", "spent in queues, over all stages of the slowest image"),
            ("compute_input", "compute_input", "spent decoding"),
            ("compute_infer", "compute_infer", "spent in batches, over all stages of the slowest image"),
            ("compute_output", "compute_output", "spent writing answers, not measured: always 0"),
        ):
            microseconds = round(1e6 * said.seconds[duration])
            yield self._counter(f"{name}_duration_us", f"Microseconds of answered requests {text}.", microseconds)
        pending = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests in the engine, not yet answered.", labels=list(self._labels)
        )
        pending.add_metric(list(self._labels.values()), self._pending())
        yield pending

    def _failures(self) -> Metric:
        family = Metric("nv_inference_request_failure", "Requests that failed, by what came of them.", "unknown")
        for reason in sorted({OTHER, *REASONS.values()}):
            labels = {**self._labels, "reason": reason}
            family.add_sample(family.name, labels, self._statistics.failures[reason])
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = Metric(f"nv_inference_{name}", text, "unknown")
        family.add_sample(family.name, self._labels, value)
        return family
