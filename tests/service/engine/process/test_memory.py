"""Images, loads and counts come out as they went in, on whichever side."""

import os
from dataclasses import replace

import numpy as np
import pytest

from msmlp.service.engine.messages import Counts, Load
from msmlp.service.engine.process.memory import PEERS, Board, Ring, new_file


def images(count: int, first: int) -> np.ndarray:
    """Images whose every byte is first, first + 1, ..."""
    return np.arange(first, first + count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("count", range(1, 6))
def test_images_come_back_from_any_position_and_touch_no_other(start: int, count: int) -> None:
    memory = Ring(new_file(Ring.bytes(5, (4, 4, 3))), images=5, shape=(4, 4, 3))
    memory.write(0, images(5, 100))
    memory.write(start, images(count, 1))
    assert np.array_equal(memory.read(start, count), images(count, 1))
    rest = 5 - count
    if rest:
        places = [(start + count + i) % 5 for i in range(rest)]
        left = memory.read(places[0], rest)
        assert left[:, 0, 0, 0].tolist() == [100 + place for place in places]


def test_what_the_engine_has_received_is_seen_by_the_front_end() -> None:
    file = new_file(Ring.bytes(5, (4, 4, 3)))
    engines, front_ends = Ring(os.dup(file), images=5, shape=(4, 4, 3)), Ring(file, images=5, shape=(4, 4, 3))
    assert front_ends.received == (0, 0)
    engines.received = 3, 7
    front_ends.write(1, images(2, 9))
    assert front_ends.received == (3, 7)
    assert np.array_equal(engines.read(1, 2), images(2, 9))


def test_a_ring_smaller_than_it_is_said_to_be_is_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        Ring(new_file(Ring.bytes(4, (4, 4, 3))), images=5, shape=(4, 4, 3))


def boards() -> tuple[Board, Board]:
    """The engine's and a front end's."""
    file = new_file(Board.bytes(2))
    return Board(os.dup(file), 2), Board(file, 2)


LOAD = Load((3, 4), (1.5, np.inf), 0.25, 0.5, 0.75, 1.25)


def test_a_load_comes_back_with_its_types() -> None:
    engines, front_ends = boards()
    engines.publish(LOAD)
    load = front_ends.published(0, (5, 6))
    assert load == replace(LOAD, submits=5, images=6)
    assert all(type(number) is int for number in load.queued)


def test_a_front_end_sees_the_sums_of_all_others() -> None:
    engines, front_ends = boards()
    engines.publish(LOAD)
    front_ends.count(0, Counts(1, 2, 3, 4))
    engines.peers = 1
    assert front_ends.published(0, (0, 0)) == LOAD
    for row, counts in {2: Counts(10, 20, 30, 40), PEERS - 1: Counts(100, 200, 300, 400)}.items():
        front_ends.count(row, counts)
    engines.peers = 3
    assert front_ends.peers == 3
    assert front_ends.published(0, (0, 0)) == replace(LOAD, others=Counts(110, 220, 330, 440))
    assert front_ends.published(2, (0, 0)) == replace(LOAD, others=Counts(101, 202, 303, 404))
    engines.count(PEERS - 1, Counts())
    assert front_ends.published(0, (0, 0)).others == Counts(10, 20, 30, 40)
