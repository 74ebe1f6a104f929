"""A request's answers, put together as its tickets land."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.exits import Reason
from service.engine.messages import Answers, History

Rows = NDArray[np.int64]


@dataclass
class Result:
    """Answers of n images, whose places in the request are `index` [n].

    `exit` is 0 for one that expired before it reached any; `landed` is when the answer came, monotonic seconds.
    """

    index: NDArray[np.int64]
    exit: NDArray[np.int64]
    reason: NDArray[np.int8]
    probabilities: NDArray[np.float32]
    history: History
    landed: NDArray[np.float64]

    @classmethod
    def empty(cls, images: int, classes: int, stages: int) -> "Result":
        """Nothing has landed yet."""
        return cls(
            np.arange(images),
            np.zeros(images, dtype=np.int64),
            np.zeros(images, dtype=np.int8),
            np.zeros((images, classes), dtype=np.float32),
            History.empty(images, stages),
            np.zeros(images),
        )

    def take(self, rows: Rows) -> "Result":
        """A copy of some rows."""
        return Result(
            self.index[rows],
            self.exit[rows],
            self.reason[rows],
            self.probabilities[rows],
            self.history.take(rows),
            self.landed[rows],
        )

    def put(self, answers: Answers, mine: Rows, now: float) -> Rows:
        """Write rows `mine` of `answers`, which landed at `now` → where they belong."""
        rows = answers.index[mine]
        self.exit[rows] = answers.exit[mine]
        self.reason[rows] = answers.reason[mine]
        self.probabilities[rows] = answers.probabilities[mine]
        self.history.put(rows, answers.history.take(mine))
        self.landed[rows] = now
        return rows


class Pending:
    """A request in the engine: `done` is its result when everything has left; `landings` tells a stream of each exit.

    `landings` holds a Result of some rows for every message, and ends with None; `left` is told how many have left.
    """

    def __init__(self, images: int, classes: int, stages: int, *, stream: bool, left: Callable[[int], None]) -> None:
        self.result = Result.empty(images, classes, stages)
        self.done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.landings: asyncio.Queue[Result | None] | None = asyncio.Queue() if stream else None
        self._missing, self._left = images, left

    def land(self, answers: Answers, mine: Rows, now: float) -> None:
        """Rows `mine` of `answers` belong to this request."""
        rows = self.result.put(answers, mine, now)
        if self.landings is not None:
            self.landings.put_nowait(self.result.take(rows))
        left = int((answers.reason[mine] != Reason.GOES_ON).sum())
        self._missing -= left
        self._left(left)
        if self._missing == 0:
            self._end()
            if not self.done.done():
                self.done.set_result(self.result)

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._end()
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        if self.landings is not None:
            self.landings.put_nowait(None)
