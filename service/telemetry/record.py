"""The record of a request from its arrival to its end, for metrics, statistics, the access log and traces."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import History
from msmlp.service.engine.result import Result
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


@dataclass(frozen=True)
class Landed:
    """Answered images: the exit of each, 0 if it expired, and its history."""

    exit: NDArray[np.int64]
    history: History


@dataclass
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
        """Whether the request classifies images."""
        return INFERENCES.get(self.route) == self.method

    @property
    def seconds(self) -> float:
        """From arrival to end."""
        return self.ended - self.arrival

    @property
    def decode_seconds(self) -> float:
        """How long decoding took."""
        return self.decoding[1] - self.decoding[0]

    @property
    def answered(self) -> int:
        """Images answered so far."""
        return sum(len(landed.exit) for landed in self.landed)

    def rename(self, given: str) -> None:
        """Take the id that the client gave, or a new one if it is unsafe; an empty one changes nothing."""
        if given:
            self.request_id = sane_id(given)
            request_id_of_this_task.set(self.request_id)

    def land(self, result: Result, gflops: float) -> None:
        """Add answered images and their cost."""
        self.landed.append(Landed(result.exit, result.history))
        self.gflops += gflops
        queue, compute = result.longest_seconds()
        self.queue_seconds, self.compute_seconds = max(self.queue_seconds, queue), max(self.compute_seconds, compute)


Observer = Callable[[RequestRecord], None]


class RequestRecords:
    """The records of a service's requests; each goes to the `observers` once, in their order, when the request ends."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = list(observers)

    @contextmanager
    def open(self, record: RequestRecord) -> Iterator[None]:
        """Answer a request inside: its id goes to the log lines, and it ends with the block if it has not before."""
        token = request_id_of_this_task.set(record.request_id)
        try:
            yield
        finally:
            self.close(record)
            request_id_of_this_task.reset(token)

    def close(self, record: RequestRecord) -> None:
        """End a request; only the first call counts."""
        if math.isnan(record.ended):
            record.ended = time.monotonic()
            tell(self.observers, record)


def tell(observers: list[Observer], record: RequestRecord) -> None:
    """Call every observer, even if another one fails."""
    for observe in observers:
        try:
            observe(record)
        except Exception:
            log.exception("an observer of requests failed")
