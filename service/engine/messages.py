"""What crosses the seam between façade and engine: flat arrays and plain numbers, no futures and no objects."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Terms:
    """How the images of a request are treated.

    `thresholds` float64 [K - 1]; `min_exit` 0...K, where 0 lets an image expire without an answer; `deadline` in
    seconds of the monotonic clock, inf without one; `stream` asks for `Answers` of every exit, not the last alone.
    """

    thresholds: NDArray[np.float64]
    min_exit: int
    max_exit: int
    deadline: float = float("inf")
    stream: bool = False


@dataclass(frozen=True)
class Submit:
    """Images of one request enter.

    `request` is unique for this engine; `pixels` uint8 [n, size, size, 3]; `arrival` in seconds of the monotonic clock.
    """

    request: int
    pixels: NDArray[np.uint8]
    terms: Terms
    arrival: float


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this request any more."""

    request: int


@dataclass(frozen=True)
class Stop:
    """Finish what waits, then end the worker."""


@dataclass(frozen=True)
class History:
    """What each stage said of m tickets, [m, K]; entries after a ticket's exit are meaningless."""

    score: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int32]
    queue_seconds: NDArray[np.float32]
    compute_seconds: NDArray[np.float32]
    batch_size: NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int, stages: int) -> "History":
        """Columns for `rows` tickets, zeroed."""
        floats = [np.zeros((rows, stages), dtype=np.float32) for _ in range(4)]
        ints = [np.zeros((rows, stages), dtype=np.int32) for _ in range(2)]
        return cls(floats[0], floats[1], ints[0], floats[2], floats[3], ints[1])

    def take(self, rows: NDArray[np.int64] | slice) -> "History":
        """Some rows: a copy where they are listed, a view of a slice."""
        return History(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def put(self, rows: NDArray[np.int64], other: "History") -> None:
        """Write `other`'s rows at `rows`."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[rows] = getattr(other, name)


@dataclass(frozen=True)
class Answers:
    """m tickets have reached an exit: whose they are, which exit, why they leave there, and its probabilities.

    `reason` is GOES_ON for those that do not leave (streams alone are told of these); `exit` is 0 and the probabilities
    [m, classes] are meaningless for those that expired before the first.
    """

    request: NDArray[np.int64]
    index: NDArray[np.int64]
    exit: NDArray[np.int64]
    reason: NDArray[np.int8]
    probabilities: NDArray[np.float32]
    history: History

    def take(self, rows: NDArray[np.int64]) -> "Answers":
        """A copy of some rows."""
        return Answers(
            self.request[rows],
            self.index[rows],
            self.exit[rows],
            self.reason[rows],
            self.probabilities[rows],
            self.history.take(rows),
        )


@dataclass(frozen=True)
class Failed:
    """The device failed under these requests; nothing more will come for them."""

    requests: NDArray[np.int64]
    detail: str


@dataclass(frozen=True)
class Cancelled:
    """So many tickets of cancelled requests have left, from a queue or after the batch they were in."""

    where: Literal["queue", "batch"]
    images: int


@dataclass(frozen=True)
class Shadowed:
    """Answered tickets that were run to the end all the same: the exit they left at, and whether the last agreed."""

    exit: NDArray[np.int64]
    agreed: NDArray[np.bool_]


@dataclass(frozen=True)
class Ready:
    """Every stage and bucket is warm; which backend, on what device, and how many images may be in flight."""

    backend: str
    device: str
    capacity: int


@dataclass(frozen=True)
class Load:
    """What waits, for gauges, brown-out and admission.

    Plain numbers, as it is made for every batch. `queued` [K] counts the images that wait for each stage (those aboard
    a batch do not), `oldest` [K] is since when the longest-waiting of them waits (monotonic seconds; inf where none
    does). At the device's best rates and the exits of late: `backlog_seconds` of device time remain for what waits or
    is aboard, `seconds_per_image` are what an image takes that arrives, and `work_seconds` is what has been run so far,
    of which the increase in a second is the load. `prediction_margin` is the factor by which deadlines allow for
    batches that take longer than predicted.
    """

    queued: tuple[int, ...]
    oldest: tuple[float, ...]
    backlog_seconds: float = 0.0
    seconds_per_image: float = 0.0
    work_seconds: float = 0.0
    prediction_margin: float = 1.0

    @classmethod
    def none(cls, stages: int) -> "Load":
        """Nothing waits."""
        return cls((0,) * stages, (float("inf"),) * stages)


@dataclass(frozen=True)
class Ran:
    """A batch has run: for the metrics."""

    stage: int
    images: int
    seconds: float


@dataclass(frozen=True)
class Died:
    """The worker has ended, and with what error: who was in flight is lost. Another Ready follows if `restarting`."""

    detail: str
    restarting: bool = False


Inbound = Submit | Cancel | Stop
Outbound = Ready | Answers | Failed | Cancelled | Shadowed | Ran | Died
