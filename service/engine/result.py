"""A request's answers, put together once its last ticket has landed."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.messages import Answers, History

Rows = NDArray[np.int64] | slice


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
    def of(cls, answers: Answers, rows: slice, now: float) -> "Result":
        """A view of neighbouring rows, which landed at `now`."""
        index = answers.index[rows]
        return cls(
            index,
            answers.exit[rows],
            answers.reason[rows],
            answers.probabilities[rows],
            answers.history.take(rows),
            np.full(len(index), now),
        )

    @classmethod
    def joined(cls, parts: Sequence["Result"]) -> "Result":
        """All rows of some parts (at least one), in the order of `index`; it may share memory with them."""
        whole = parts[0]
        if len(parts) > 1:
            index, exit, reason, probabilities, landed, *history = (
                np.concatenate(same) for same in zip(*(part._columns() for part in parts), strict=True)
            )
            whole = cls(index, exit, reason, probabilities, History(*history), landed)
        order = np.argsort(whole.index, kind="stable") if len(whole.index) > 1 else slice(None)
        return whole.take(order)

    def take(self, rows: Rows) -> "Result":
        """Some rows: a copy where they are listed, a view of a slice."""
        return Result(
            self.index[rows],
            self.exit[rows],
            self.reason[rows],
            self.probabilities[rows],
            self.history.take(rows),
            self.landed[rows],
        )

    def longest_seconds(self) -> tuple[float, float]:
        """The longest queueing and the longest compute of any image, over all the stages it has passed."""
        seconds = self.history.seconds
        passed = np.arange(seconds.shape[1]) < self.exit[:, None]
        queue, compute = (seconds * passed[:, :, None]).sum(axis=1).max(axis=0, initial=0.0).tolist()
        return queue, compute

    def _columns(self) -> list[NDArray[Any]]:
        rest = (self.index, self.exit, self.reason, self.probabilities, self.landed)
        return [*rest, *vars(self.history).values()]


class Pending:
    """A request in the engine: `done` is its result when everything has left; `landings` tells a stream of each exit.

    `landings` holds a Result of some rows for every message, and ends with None; `left` is told how many have left,
    and `missing` are those that have not.
    """

    def __init__(self, images: int, *, stream: bool, left: Callable[[int], None]) -> None:
        self.done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.landings: asyncio.Queue[Result | None] | None = asyncio.Queue() if stream else None
        self.missing, self._left = images, left
        self._parts: list[Result] = []

    def land(self, landed: Result) -> None:
        """More of this request's images have reached an exit."""
        if self.landings is not None:
            self.landings.put_nowait(landed)
            landed = landed.take(np.flatnonzero(landed.reason != Reason.GOES_ON))
        self._parts.append(landed)
        left = len(landed.index)
        self.missing -= left
        self._left(left)
        if self.missing == 0:
            self._end()
            if not self.done.done():
                self.done.set_result(Result.joined(self._parts))

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._end()
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        if self.landings is not None:
            self.landings.put_nowait(None)
