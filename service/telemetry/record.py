"""What is known of a request from its arrival to its end, for all who watch: metrics, statistics, log, traces."""

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
"""Methods of gRPC's requests, and of a stream of them when it is that which ends."""

INFERENCES = {
    "/classify": "POST",
    "/v2/models/{name}/infer": "POST",
    "grpc/ModelInfer": RPC,
    "grpc/ModelStreamInfer": RPC,
}
"""Routes that classify, and the method by which they do."""


@dataclass(frozen=True)
class Landed:
    """Images that were answered: the exit each left at, 0 without one, and what its stages took."""

    exit: NDArray[np.int64]
    history: History


@dataclass
class Account:
    """A request. Times are monotonic seconds; what it has not come to is as it begins here.

    `route` and `method` are of bounded sets. `status` is what came of it, in the words of HTTP: of a stream that broke
    off not the 200 that it began with. `decoding` is when that began and ended; `queue_seconds` and `compute_seconds`
    are the longest of any image, over all its stages.
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
        """Whether it is there to classify something."""
        return INFERENCES.get(self.route) == self.method

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""
        return self.ended - self.arrival

    @property
    def decode_seconds(self) -> float:
        """How long its images took to be decoded."""
        return self.decoding[1] - self.decoding[0]

    @property
    def answered(self) -> int:
        """How many of its images were."""
        return sum(len(landed.exit) for landed in self.landed)

    def rename(self, given: str) -> None:
        """Its client calls it so, as is read only now; what is no sane id changes nothing."""
        if given:
            self.request_id = sane_id(given)
            request_id_of_this_task.set(self.request_id)

    def land(self, result: Result, gflops: float) -> None:
        """Some of its images were answered, which has cost so much."""
        self.landed.append(Landed(result.exit, result.history))
        self.gflops += gflops
        queue, compute = result.longest_seconds()
        self.queue_seconds, self.compute_seconds = max(self.queue_seconds, queue), max(self.compute_seconds, compute)


Observer = Callable[[Account], None]


class Accounts:
    """Those of all requests of a service; `observers` are told of each once, at its end, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = list(observers)

    @contextmanager
    def open(self, account: Account) -> Iterator[None]:
        """A request is answered inside; what is logged there has its id. It is over at the end if not before."""
        token = request_id_of_this_task.set(account.request_id)
        try:
            yield
        finally:
            self.close(account)
            request_id_of_this_task.reset(token)

    def close(self, account: Account) -> None:
        """A request is over, the first time that this is said."""
        if math.isnan(account.ended):
            account.ended = time.monotonic()
            tell(self.observers, account)


def tell(observers: list[Observer], account: Account) -> None:
    """Each hears of it, whatever becomes of the others: the answer does not depend on who watches."""
    for observe in observers:
        try:
            observe(account)
        except Exception:
            log.exception("an observer of requests failed")
