"""Sums over classification requests, as the Open Inference Protocol's `GET .../stats` reports them."""

import time
from collections import Counter, defaultdict
from http import HTTPStatus
from typing import Any

from msmlp.service.telemetry.record import RequestRecord

DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counts requests, in seconds. A request counts once for each duration, however many images it has.

    `queue` and `compute_infer` are those of its slowest image; `compute_output`, writing the answer, is not measured.
    """

    def __init__(self) -> None:
        self.images = 0
        self.counts: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last_ms = 0

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        if not record.inference:
            return
        if record.status != HTTPStatus.OK:
            self._add("fail", record.seconds)
            return
        self.images += record.answered
        self._last_ms = round(time.time() * 1e3)
        self._add("success", record.seconds)
        self._add("compute_input", record.decode_seconds)
        self._add("queue", record.queue_seconds)
        self._add("compute_infer", record.compute_seconds)
        self._add("compute_output", 0.0)

    def document(self, name: str, version: str, executions: int) -> dict[str, Any]:
        """One model's entry; `executions` is the number of batches its first stage has run."""
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_ms,
            "inference_count": self.images,
            "execution_count": executions,
            "inference_stats": {
                duration: {"count": self.counts[duration], "ns": round(self.seconds[duration] * 1e9)}
                for duration in (*DURATIONS, "cache_hit", "cache_miss")
            },
            "batch_stats": [],
        }

    def _add(self, name: str, seconds: float) -> None:
        self.counts[name] += 1
        self.seconds[name] += seconds
