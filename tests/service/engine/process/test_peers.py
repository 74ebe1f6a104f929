"""Every front end is told all that is its own, under its own numbers, and nothing else."""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.engine.messages import (
    HISTORY,
    Answers,
    Cancelled,
    Died,
    Failed,
    Outbound,
    Ran,
    Ready,
    Shadowed,
)
from msmlp.service.engine.process import peers

READY, RAN = Ready("fake", "none", 8), Ran(0, 5, 0.25)
Row = tuple[int, int, int]
"""Peer, its request, and a number that no other row has."""


def answers(rows: list[Row]) -> Answers:
    unique = np.array([row[2] for row in rows])
    history = np.zeros((len(rows), 3), dtype=HISTORY)
    history["class_id"] = unique[:, None]
    return Answers(
        request=np.array([peers.number(peer, request) for peer, request, _ in rows]),
        index=unique,
        exit=unique + 1,
        reason=(unique % 5).astype(np.int8),
        probabilities=np.repeat(unique[:, None], 4, axis=1).astype(np.float32),
        history=history,
    )


def of(kind: type, messages: list[Outbound]) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


@st.composite
def batches(draw: st.DrawFn) -> list[list[Row]]:
    """Some messages of answers, of some peers."""
    one = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 1, 2**20, 2**40 - 1])), min_size=1, max_size=12)
    unique = iter(range(1000))
    return [[(peer, request, next(unique)) for peer, request in each] for each in draw(st.lists(one, max_size=4))]


@given(batches(), st.sets(st.integers(0, 4)))
def test_each_answer_reaches_its_peer_once_and_whole(made: list[list[Row]], here: set[int]) -> None:
    told = peers.split([RAN, *(answers(rows) for rows in made)], sorted(here))
    expected = Counter((peer, request, unique) for rows in made for peer, request, unique in rows if peer in here)
    got: Counter[Row] = Counter()
    for peer, messages in told.items():
        for each in of(Answers, messages):
            unique = each.index
            got.update(zip([peer] * len(unique), each.request.tolist(), unique.tolist(), strict=True))
            assert (each.exit == unique + 1).all()
            assert (each.reason == unique % 5).all()
            assert (each.probabilities == unique[:, None]).all()
            assert (each.history["class_id"] == unique[:, None]).all()
            assert each.reason.dtype == np.int8
    assert got == expected
    assert sum(len(of(Ran, messages)) for messages in told.values()) == bool(here), "counted once"
    assert all(told.values()), "nobody is woken for nothing"


def test_failures_are_split_too() -> None:
    requests = np.array([peers.number(1, 7), peers.number(2, 7), peers.number(1, 8)])
    told = peers.split([Failed(requests, "why")], [1, 2, 3])
    assert {peer: messages[0].requests.tolist() for peer, messages in told.items()} == {1: [7, 8], 2: [7]}  # type: ignore[union-attr]
    assert peers.split([Failed(requests[:0], "of a shadow")], [1, 2]) == {}


def test_what_is_only_counted_wakes_nobody_who_hears_nothing() -> None:
    counted: list[Outbound] = [RAN, Cancelled("queue", 3), Shadowed(np.array([1]), np.array([True]))]
    told = peers.split([*counted, answers([(2, 0, 0)])], [1, 2, 3])
    assert {peer: len(messages) for peer, messages in told.items()} == {2: 4}
    assert peers.split(counted, [1, 2, 3]) == {1: counted}
    assert peers.split(counted, []) == {}


def test_ready_and_died_come_last_to_all() -> None:
    for last in (READY, Died("how")):
        told = peers.split([answers([(2, 0, 0)]), RAN, last], [1, 2])
        assert told[1] == [RAN, last]
        assert [type(message) for message in told[2]] == [Answers, type(last)]


def test_the_range_of_a_peer_is_all_its_requests() -> None:
    everything = peers.all_of(3)
    for request in (0, 2**40 - 1):
        assert everything.first <= peers.number(3, request) < everything.last
        assert not everything.first <= peers.number(2, request) < everything.last
        assert not everything.first <= peers.number(4, request) < everything.last
