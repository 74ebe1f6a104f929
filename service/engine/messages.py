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
    """What each stage said of m tickets, [m, K] each; entries after a ticket's exit are meaningless.

    Columns lie side by side, `measured` float32 [m, K, 4] and `counted` int32 [m, K, 2]: moving a ticket's history is
    two operations then, not six, after every batch.
    """

    measured: NDArray[np.float32]
    counted: NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int, stages: int) -> "History":
        """Columns for `rows` tickets, zeroed."""
        return cls(np.zeros((rows, stages, 4), dtype=np.float32), np.zeros((rows, stages, 2), dtype=np.int32))

    @property
    def score(self) -> NDArray[np.float32]:
        """What the exit policy compared."""
        return self.measured[..., 0]

    @property
    def confidence(self) -> NDArray[np.float32]:
        """The label's probability."""
        return self.measured[..., 1]

    @property
    def queue_seconds(self) -> NDArray[np.float32]:
        """The wait for the stage."""
        return self.measured[..., 2]

    @property
    def compute_seconds(self) -> NDArray[np.float32]:
        """How long the batch took."""
        return self.measured[..., 3]

    @property
    def seconds(self) -> NDArray[np.float32]:
        """Both, [m, K, 2]."""
        return self.measured[..., 2:]

    @property
    def class_id(self) -> NDArray[np.int32]:
        """The label."""
        return self.counted[..., 0]

    @property
    def batch_size(self) -> NDArray[np.int32]:
        """Images in the batch."""
        return self.counted[..., 1]

    def take(self, rows: NDArray[np.int64] | slice) -> "History":
        """Some rows: a copy where they are listed, a view of a slice."""
        return History(self.measured[rows], self.counted[rows])


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
