"""What the web side and the engine core send each other: flat arrays and plain numbers that can cross to a process."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.heartbeat import SILENCE_SECONDS

HISTORY: np.dtype[np.void] = np.dtype(
    [
        ("score", np.float32),  # what the exit policy compared
        ("confidence", np.float32),  # the label's probability
        ("queue_seconds", np.float32),  # the wait for the stage
        ("compute_seconds", np.float32),  # the duration of the batch
        ("class_id", np.int32),
        ("batch_size", np.int32),
    ]
)
"""What one stage answered for one image. Arrays of it are [m, K]; entries after an image's exit are meaningless."""

History = NDArray[np.void]

_FLOATS = cast("np.dtype[np.float32]", np.dtype((np.float32, 6)))


def history_floats(history: History) -> NDArray[np.float32]:
    """The four float columns of a history [m, K], as a view [m, K, 4]."""
    return history.view(_FLOATS)[..., :4]


@dataclass(frozen=True)
class ExitParameters:
    """Exit parameters of a request.

    `thresholds` float64 [K - 1]; `min_exit` 0...K, where 0 lets an image expire without an answer; `deadline` in
    seconds of the monotonic clock, inf for none; `stream` asks for `Answers` at every exit, not only the last.
    """

    thresholds: NDArray[np.float64]
    min_exit: int
    max_exit: int
    deadline: float = float("inf")
    stream: bool = False


class Submit(NamedTuple):
    """The images of one request.

    `request` is unique in this engine; `pixels` uint8 [n, *image shape]; `arrival` in seconds of the monotonic clock.
    """

    request: int
    pixels: NDArray[np.uint8]
    parameters: ExitParameters
    arrival: float


@dataclass(frozen=True)
class Cancel:
    """The client has left."""

    request: int


@dataclass(frozen=True)
class CancelRange:
    """Whoever sent the requests `first` to `last` - 1 has left."""

    first: int
    last: int


@dataclass(frozen=True)
class Stop:
    """Finish the images in flight, then end the worker."""


@dataclass(slots=True)
class Answers:
    """m images have reached an exit.

    `index` is the image's position in its request. `reason` is GOES_ON where the image does not leave (streams only).
    `exit` is 0 and `probabilities` [m, classes] meaningless for images that expired before the first exit.
    """

    request: NDArray[np.int64]
    index: NDArray[np.int64]
    exit: NDArray[np.int64]
    reason: NDArray[np.int8]
    probabilities: NDArray[np.float32]
    history: History


@dataclass(frozen=True)
class Failed:
    """The device failed under these requests, or had no slots for their `shed` images; nothing more will come."""

    requests: NDArray[np.int64]
    detail: str
    shed: int = 0


@dataclass(frozen=True)
class Invalid:
    """Images whose score or confidence was not a number; their requests have failed."""

    images: int


@dataclass(frozen=True)
class Cancelled:
    """Images of cancelled requests have left, from a queue or after the batch they were in."""

    where: Literal["queue", "batch"]
    images: int


@dataclass(frozen=True)
class Shadowed:
    """Answered images that were run to the last exit: the exit they left at, and whether the last one agreed."""

    exit: NDArray[np.int64]
    agreed: NDArray[np.bool_]


@dataclass(frozen=True)
class Ready:
    """Every stage and bucket is warm. `permits` is how many images may be in flight. An engine that gives no sign of
    life for `silence` seconds hangs.
    """

    backend: str
    device: str
    permits: int
    silence: float = SILENCE_SECONDS


class Counts(NamedTuple):
    """Images of a front end: in flight, inside the engine, admitted since its start, and degraded among those."""

    inflight: float = 0
    inside: float = 0
    admitted: float = 0
    degraded: float = 0


NO_COUNTS = Counts()


@dataclass(frozen=True)
class Load:
    """What waits, for gauges, brown-out and admission. Plain numbers, because one is made for every batch.

    `queued` [K]: images waiting for each stage, without those in a running batch. `oldest` [K]: since when the oldest
    of them has waited (monotonic seconds; inf if none). `backlog_seconds`: device time still needed by the images that
    wait or run. `seconds_per_image`: device time of an image that arrives now. `work_seconds`: device time of all
    images so far, at full batches; its increase per second is the load. `prediction_margin`: the factor by which
    deadlines allow for batches slower than predicted. `submits` and `images`: received so far. `others`: the sums of
    all other front ends of the engine.
    """

    queued: tuple[int, ...]
    oldest: tuple[float, ...]
    backlog_seconds: float = 0.0
    seconds_per_image: float = 0.0
    work_seconds: float = 0.0
    prediction_margin: float = 1.0
    submits: int = 0
    images: int = 0
    others: Counts = NO_COUNTS

    @classmethod
    def none(cls, stages: int) -> "Load":
        return cls((0,) * stages, (float("inf"),) * stages)


class Ran(NamedTuple):
    """A batch has run; for the metrics."""

    stage: int
    images: int
    seconds: float


@dataclass(frozen=True)
class Died:
    """The worker has ended and its images in flight are lost. Another Ready follows if `restarting`."""

    detail: str
    restarting: bool = False


Inbound = Submit | Cancel | CancelRange | Stop
Outbound = Ready | Answers | Failed | Invalid | Cancelled | Shadowed | Ran | Died
