"""What the supervisor makes of a front end's numbers on the board."""

import math
import socket

from msmlp.service.frontends.board import Board, Column
from msmlp.service.frontends.place import ATTEMPTS, SILENT_LOOKS, STARTING_LOOKS, Place, Start
from msmlp.service.settings import Settings


def nothing(start: Start, end: socket.socket) -> None:
    """The life of a front end that ends."""


class Placed:
    """A place with a process that ends at once; the test writes its numbers."""

    def __init__(self) -> None:
        self.board = Board(2)
        self.place = Place(Start(1, Settings(), Settings.model_copy, self.board, None), nothing)
        self.place.start()

    def put(self, column: Column, value: float) -> None:
        self.board.put(1, column, value)

    def looks_until_it_hangs(self) -> int:
        return next(look for look in range(1, 2 * STARTING_LOOKS) if self.place.hangs())


def test_looks_without_a_heartbeat_are_counted_once_it_was_ready() -> None:
    placed = Placed()
    try:
        assert placed.looks_until_it_hangs() == STARTING_LOOKS
        placed.put(Column.BEAT, 1)
        assert not placed.place.hangs()
        placed.put(Column.READY, 1)
        placed.put(Column.BEAT, 2)
        assert not placed.place.hangs()
        assert placed.looks_until_it_hangs() == SILENT_LOOKS
        placed.put(Column.READY, 0)  # as while its engine restarts
        placed.put(Column.BEAT, 3)
        assert not placed.place.hangs()
        assert placed.looks_until_it_hangs() == SILENT_LOOKS
    finally:
        placed.place.bury()


def test_the_time_it_took_to_start_is_no_silence() -> None:
    """An engine may be ready before the first heartbeat of its front end's loop."""
    placed = Placed()
    try:
        for _ in range(5 * SILENT_LOOKS):
            assert not placed.place.hangs()
        placed.put(Column.READY, 1)
        assert placed.looks_until_it_hangs() == SILENT_LOOKS
    finally:
        placed.place.bury()


def test_open_connections_are_those_handed_over_and_not_left() -> None:
    placed = Placed()
    here, there = socket.socketpair()
    try:
        with here, there:
            handed = sum(placed.place.hand_over(there) for _ in range(3))  # fewer if the process has ended by now
        placed.put(Column.LEFT, 2)
        assert placed.place.connections == handed - 2
    finally:
        placed.place.bury()
    assert placed.place.connections == handed
    assert not placed.place.hand_over(there)


def test_one_that_is_never_ready_is_given_up_and_one_that_was_is_not() -> None:
    placed = Placed()
    placed.put(Column.READY, 1)
    assert not placed.place.hangs()
    assert placed.place.bury() == "it ended with status 0"
    waits = [placed.place.next_start()]
    for _ in range(ATTEMPTS):
        placed.place.start()
        placed.place.bury()
        waits.append(placed.place.next_start())
    first, *others, last = waits
    assert first is not None
    assert all(wait is not None and first < wait < math.inf for wait in others)
    assert last is None
    assert placed.place.gone
