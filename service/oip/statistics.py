"""What `GET .../stats` says: sums over the requests answered since the start, in Triton's form."""

import time
from collections import Counter, defaultdict
from typing import Any


class Statistics:
    """Counts requests; times are seconds. One request is one count of each duration, whatever its number of images."""

    def __init__(self) -> None:
        self._images = 0
        self._last_ms = 0
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def answered(self, images: int, *, total: float, decode: float, queue: float, compute: float) -> None:
        """A request was answered; `queue` and `compute` are those of its slowest image."""
        self._images += images
        self._last_ms = round(time.time() * 1e3)
        for name, seconds in (
            ("success", total),
            ("compute_input", decode),
            ("queue", queue),
            ("compute_infer", compute),
            ("compute_output", 0.0),  # writing the answer is not measured
        ):
            self._add(name, seconds)

    def failed(self, total: float) -> None:
        """A request was refused or failed."""
        self._add("fail", total)

    def document(self, name: str, version: str, executions: int) -> dict[str, Any]:
        """One model's entry; `executions` is the number of batches its first stage has run."""
        durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_ms,
            "inference_count": self._images,
            "execution_count": executions,
            "inference_stats": {
                duration: {"count": self._counts[duration], "ns": round(self._seconds[duration] * 1e9)}
                for duration in (*durations, "cache_hit", "cache_miss")
            },
            "batch_stats": [],
        }

    def _add(self, name: str, seconds: float) -> None:
        self._counts[name] += 1
        self._seconds[name] += seconds
