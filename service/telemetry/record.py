"""The record of a request from its arrival to its end, for metrics, the access log and traces, and sums of records."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import History
from msmlp.service.engine.result import Result
from msmlp.service.keys import Key
from msmlp.service.logs import request_id_of_this_task, sane_id
from msmlp.service.operating_points import ResolvedPoint

log = logging.getLogger("msmlp.http")

RPC, STREAM = "RPC", "STREAM"
"""Methods of gRPC requests, and of a gRPC stream when it ends."""

INFERENCES = {
    "/classify": "POST",
    "/v2/models/{name}/infer": "POST",
    "grpc/ModelInfer": RPC,
    "grpc/ModelStreamInfer": RPC,
}
"""Routes that classify, with their method."""


class Landed(NamedTuple):
    """Answered images: the exit of each, 0 if it expired, and its history."""

    exit: NDArray[np.int64]
    history: History


@dataclass(slots=True)
class RequestRecord:
    """A request. Times are in monotonic seconds; what has not happened yet has its default.

    The values of `route` and `method` are bounded. `status` is the outcome as an HTTP status: for a stream that broke
    off, not the 200 it began with. `decoding` is the begin and end of decoding; `queue_seconds` and `compute_seconds`
    are the longest of any image, summed over its stages.
    """

    request_id: str
    arrival: float
    method: str = ""
    route: str = ""
    headers: Callable[[], Mapping[str, str]] = dict
    key: Key | None = None
    images: int = 0
    point: ResolvedPoint | None = None
    decoding: tuple[float, float] = (0.0, 0.0)
    landed: list[Landed] = field(default_factory=list)
    gflops: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    status: int = 0
    ended: float = math.nan
    trace_id: str = ""

    @property
    def inference(self) -> bool:
        return INFERENCES.get(self.route) == self.method

    @property
    def seconds(self) -> float:
        return self.ended - self.arrival

    @property
    def decode_seconds(self) -> float:
        return self.decoding[1] - self.decoding[0]

    @property
    def answered(self) -> int:
        return sum(len(landed.exit) for landed in self.landed)

    def rename(self, given: str) -> None:
        """Take the id that the client gave, or a new one if it is unsafe; an empty one changes nothing."""
        if given:
            self.request_id = sane_id(given)
            request_id_of_this_task.set(self.request_id)

    def land(self, result: Result, gflops: float) -> None:
        self.landed.append(Landed(result.exit, result.history))
        self.gflops += gflops
        queue, compute = result.longest_seconds()
        self.queue_seconds, self.compute_seconds = max(self.queue_seconds, queue), max(self.compute_seconds, compute)


Observer = Callable[[RequestRecord], None]


class RequestRecords:
    """The records of a service's requests; each goes to the `observers` once, in their order, when the request ends."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = list(observers)

    def open(self, record: RequestRecord) -> "_Open":
        """Within the block, log lines have the request's id; the request ends with it, if not before."""
        return _Open(self, record)

    def close(self, record: RequestRecord) -> None:
        """End a request; only the first call counts."""
        if math.isnan(record.ended):
            record.ended = time.monotonic()
            tell(self.observers, record)


class _Open:
    """A generator would take three times as long."""

    def __init__(self, records: RequestRecords, record: RequestRecord) -> None:
        self._records, self._record = records, record

    def __enter__(self) -> None:
        self._token = request_id_of_this_task.set(self._record.request_id)

    def __exit__(self, *_: object) -> None:
        self._records.close(self._record)
        request_id_of_this_task.reset(self._token)


def tell(observers: list[Observer], record: RequestRecord) -> None:
    for observe in observers:
        try:
            observe(record)
        except Exception:
            log.exception("an observer of requests failed")


class Statistics:
    """Sums over classification requests, in seconds, as the Open Inference Protocol's `GET .../stats` reports them.

    A request counts once for each duration, however many images it has. `queue` and `compute_infer` are those of its
    slowest image; `compute_output`, writing the answer, is not measured.
    """

    def __init__(self) -> None:
        self.images = self.succeeded = self.failed = 0
        self._fail = self._success = self._queue = self._input = self._infer = 0.0  # seconds
        self._last_ms = 0

    def ended(self, record: RequestRecord) -> None:
        if not record.inference:
            return
        if record.status != HTTPStatus.OK:
            self.failed += 1
            self._fail += record.seconds
            return
        self.images += record.answered
        self._last_ms = int(time.time() * 1e3)
        self.succeeded += 1
        self._success += record.seconds
        self._queue += record.queue_seconds
        self._input += record.decode_seconds
        self._infer += record.compute_seconds

    def add(self, other: "Statistics") -> None:
        """What another process has counted."""
        last = max(self._last_ms, other._last_ms)
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        self._last_ms = last

    def document(self, name: str, version: str, executions: int) -> dict[str, Any]:
        """One model's entry; `executions` is the number of batches its first stage has run."""
        sums = {
            "success": self._success,
            "fail": self._fail,
            "queue": self._queue,
            "compute_input": self._input,
            "compute_infer": self._infer,
            **dict.fromkeys(("compute_output", "cache_hit", "cache_miss"), 0.0),
        }
        counts = {"fail": self.failed, "cache_hit": 0, "cache_miss": 0}  # of the others, as many as succeeded
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_ms,
            "inference_count": self.images,
            "execution_count": executions,
            "inference_stats": {
                duration: {"count": counts.get(duration, self.succeeded), "ns": round(seconds * 1e9)}
                for duration, seconds in sums.items()
            },
            "batch_stats": [],
        }
