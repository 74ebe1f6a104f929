"""A request's answers, collected until its last image has left."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.admission import Permits
from msmlp.service.engine.messages import HISTORY, Answers, ExitParameters, History, history_floats

REASONS = {int(reason): reason.name.lower() for reason in Reason}


@dataclass
class Result:
    """Answers of n images; `index` [n] is each image's position in the request.

    `exit` is 0 for one that expired before the first; `landed` is when the answer came, in monotonic seconds.
    """

    index: NDArray[np.int64]
    exit: NDArray[np.int64]
    reason: NDArray[np.int8]
    probabilities: NDArray[np.float32]
    history: History
    landed: NDArray[np.float64]

    @classmethod
    def of(cls, answers: Answers, now: float) -> "Result":
        landed = np.empty(len(answers.index))
        landed.fill(now)  # np.full takes three times as long
        return cls(answers.index, answers.exit, answers.reason, answers.probabilities, answers.history, landed)

    @classmethod
    def joined(cls, parts: Sequence["Result"]) -> "Result":
        """All rows of some parts (at least one), in the order of `index`; it may share memory with them."""
        whole = parts[0]
        if len(parts) > 1:
            columns = zip(*(vars(part).values() for part in parts), strict=True)
            whole = cls(*map(_joined, columns))
        return whole if len(whole.index) == 1 else whole.take(np.argsort(whole.index, kind="stable"))

    def take(self, rows: NDArray[np.int64]) -> "Result":
        return Result(*(column.take(rows, axis=0) for column in vars(self).values()))

    def part(self, rows: slice) -> "Result":
        return Result(  # written out: a loop takes three times as long
            self.index[rows],
            self.exit[rows],
            self.reason[rows],
            self.probabilities[rows],
            self.history[rows],
            self.landed[rows],
        )

    def longest_seconds(self) -> tuple[float, float]:
        """The longest queueing and the longest compute time of any image, summed over the stages it passed."""
        if len(self.index) == 1:  # mostly; numpy would take ten times as long
            queue = compute = 0.0
            for _, _, waited, ran, _, _ in self.history.tolist()[0][: self.exit.item()]:
                queue += waited
                compute += ran
            return queue, compute
        seconds = history_floats(self.history)[..., 2:]
        passed = np.arange(seconds.shape[1]) < self.exit[:, None]
        queue, compute = (seconds * passed[:, :, None]).sum(axis=1).max(axis=0, initial=0.0).tolist()
        return queue, compute


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if columns[0].dtype == HISTORY:  # numpy would compare the fields of each
        flat = np.concatenate([np.ascontiguousarray(column).view(np.float32) for column in columns])
        return np.ascontiguousarray(flat).view(HISTORY)  # numpy may join an empty one and single rows in columns
    return np.concatenate(columns)


class Pending:
    """A request in the engine: `done` is its result once every image has left.

    For a stream, `landings` yields a Result for every message and ends with None. `missing` counts the images that
    have not left; the permits of the others are returned, however slowly a stream is read.
    """

    def __init__(self, images: int, permits: Permits, parameters: ExitParameters) -> None:
        self.done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.landings: asyncio.Queue[Result | None] | None = asyncio.Queue() if parameters.stream else None
        self.missing, self._images, self._permits, self._parameters = images, images, permits, parameters
        self._parts: list[Result] = []

    def land(self, landed: Result) -> int:
        """Images have reached an exit → how many of them leave."""
        if self.landings is not None:
            self.landings.put_nowait(landed)
            landed = landed.take(np.flatnonzero(landed.reason != Reason.GOES_ON))
        self._parts.append(landed)
        left = len(landed.index)
        self.missing -= left
        self._permits.leave(left)
        if self.missing == 0:
            self._end()
            if not self.done.done():
                self.done.set_result(Result.joined(self._parts))
        return left

    @property
    def deadline(self) -> float:
        """After it nobody waits for an answer; an exit that is demanded outranks it."""
        return math.inf if self._parameters.min_exit else self._parameters.deadline

    def expire(self) -> None:
        """The images that have not left do so, without an answer."""
        left = [index for part in self._parts for index in part.index.tolist()]
        index = np.setdiff1d(np.arange(self._images), left)
        stages = len(self._parameters.thresholds) + 1
        classes = self._parts[0].probabilities.shape[1] if self._parts else 0
        none, count = np.zeros(len(index), dtype=np.int64), len(index)
        reason = np.full(count, Reason.EXPIRED, dtype=np.int8)
        probabilities = np.zeros((count, classes), dtype=np.float32)
        answers = Answers(none, index, none, reason, probabilities, np.zeros((count, stages), dtype=HISTORY))
        self.land(Result.of(answers, time.monotonic()))

    def fail(self, error: Exception) -> None:
        self._end()
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        if self.landings is not None:
            self.landings.put_nowait(None)
