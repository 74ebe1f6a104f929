"""The board: what front ends show each other and the supervisor, as numbers in shared memory."""

from enum import IntEnum
from multiprocessing import get_context
from typing import Any

from msmlp.service.errors import EngineDownError
from msmlp.service.frontends.line import Line

ANSWER_SECONDS = 5.0
"""How long the supervisor may take; it waits a second for other front ends itself."""


class Column(IntEnum):
    """One front end's numbers. It alone writes them; the supervisor clears them once it is dead."""

    BEAT = 0
    """Counts turns of its event loop; 0 until that runs."""
    READY = 1
    """1 while it takes images."""
    LEFT = 2
    """Connections that were handed to it and are closed."""
    RATE = 3
    """Images answered per second."""
    LEAVING = 4
    """1 once it ends: it takes no more connections. While it only drains it still does."""


class Board:
    """A row per front end. It can be sent to a child only while that is being started.

    A number is written in one instruction and read at any time; two of them may be of different moments.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._numbers = get_context("spawn").RawArray("d", rows * len(Column))

    def get(self, row: int, column: Column) -> float:
        return float(self._numbers[row * len(Column) + column])

    def put(self, row: int, column: Column, value: float) -> None:
        self._numbers[row * len(Column) + column] = value

    def clear(self, row: int) -> None:
        for column in Column:
            self.put(row, column, 0.0)


class Others:
    """The other front ends, as front end `index` sees them. `rate`, the images per second of all of them, is as of the
    last `look`.
    """

    def __init__(self, board: Board, index: int, line: Line) -> None:
        self._board, self._index, self._line = board, index, line
        self.rate = 0.0

    @property
    def any_ready(self) -> bool:
        """Itself included."""
        return any(self._board.get(row, Column.READY) for row in range(self._board.rows))

    def look(self) -> None:
        rows = range(self._board.rows)
        self.rate = sum(self._board.get(row, Column.RATE) for row in rows if row != self._index)

    async def ask(self, what: str, seconds: float = ANSWER_SECONDS) -> Any:
        """The service's `metrics` (text) or `statistics`, or how its `reload` ended; EngineDownError if the supervisor
        does not answer.
        """
        answer = await self._line.ask(what, seconds)
        if answer is None:
            raise EngineDownError(f"the supervisor has not answered for {seconds:g} s")
        return answer
