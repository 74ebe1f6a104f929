"""How connections are evened out over front ends; the rest of a generation is tested by real processes."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.frontends.generation import MOVES, Generation
from msmlp.service.frontends.line import GiveBack


class Front:
    """A front end that gives back at once what it is asked for."""

    def __init__(self, index: int, connections: int, *, ready: bool = True, settled: bool = True) -> None:
        self.index, self.connections, self.ready, self.settled = index, connections, ready, settled
        self.given = 0
        self.line = self

    def send(self, message: GiveBack) -> None:
        assert 0 < message.number <= min(MOVES, self.connections)
        self.connections -= message.number
        self.given += message.number


def generation(*fronts: Front) -> Generation:
    made: Any = SimpleNamespace(engines=None)
    places: Any = list(fronts)
    return Generation(made, places, SimpleNamespace(), lambda *_: None, trial=False)  # type: ignore[arg-type]


def take(fronts: list[Front]) -> int:
    """Hand what was given back to those with the fewest → how many that were."""
    moved = sum(front.given for front in fronts)
    for front in fronts:
        front.given = 0
    for _ in range(moved):
        min(fronts, key=lambda front: front.connections).connections += 1
    return moved


@given(st.lists(st.integers(0, 300), min_size=1, max_size=9))
def test_all_are_spread_in_the_end(numbers: list[int]) -> None:
    fronts = [Front(index, number) for index, number in enumerate(numbers)]
    served = generation(*fronts)
    for _ in range(1 + max(numbers) // MOVES):
        served.even_out()
        take(fronts)
    assert max(front.connections for front in fronts) - min(front.connections for front in fronts) <= 1
    assert sum(front.connections for front in fronts) == sum(numbers)
    served.even_out()
    assert take(fronts) == 0, "it ends"


@pytest.mark.parametrize("other", [Front(1, 0, ready=False), Front(1, 0, settled=False)])
def test_one_that_may_die_at_once_gets_none_of_others(other: Front) -> None:
    served = generation(Front(0, 10), other)
    served.even_out()
    assert [front.connections for front in served.places] == [10, 0]
