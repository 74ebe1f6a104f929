"""The board: what front ends show each other and the supervisor, as numbers in shared memory."""

from enum import IntEnum
from multiprocessing import get_context


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

    @property
    def any_ready(self) -> bool:
        return any(self.get(row, Column.READY) for row in range(self.rows))

    def rate_beside(self, row: int) -> float:
        """Images per second of all others."""
        return sum(self.get(other, Column.RATE) for other in range(self.rows) if other != row)
