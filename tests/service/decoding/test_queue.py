"""Whose picture is decoded next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.decoding.queue import LARGE_SHARE, SMALL_SECONDS, DecodeQueue

SMALL, LARGE = SMALL_SECONDS / 2, 100 * SMALL_SECONDS


def queue_of(**requests: list[float]) -> DecodeQueue[str]:
    queue = DecodeQueue[str]()
    for name, seconds in requests.items():
        queue.add(name, seconds)
    return queue


def drained(queue: DecodeQueue[str]) -> list[str]:
    order = []
    while (turn := queue.take()) is not None:
        order.append(f"{turn.request}{turn.number}")
    return order


def test_requests_take_turns_one_picture_each() -> None:
    assert drained(queue_of(a=[LARGE] * 3, b=[LARGE], c=[LARGE] * 2)) == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert drained(queue_of(a=[SMALL] * 3, b=[SMALL] * 2)) == ["a0", "b0", "a1", "b1", "a2"]


def test_small_pictures_go_first_also_within_a_request() -> None:
    assert drained(queue_of(a=[LARGE, SMALL, LARGE], b=[SMALL])) == ["a1", "b0", "a0", "a2"]


def test_a_removed_request_has_no_more_turns() -> None:
    queue = queue_of(a=[LARGE, SMALL, LARGE], b=[LARGE])
    queue.remove("a")
    queue.remove("never there")
    assert queue.seconds == LARGE
    assert drained(queue) == ["b0"]


def test_what_is_ahead_is_no_more_than_turns_give_the_others() -> None:
    queue = queue_of(a=[LARGE] * 10, b=[LARGE], c=[SMALL])
    assert queue.seconds == queue.ahead(1e9) == 11 * LARGE + SMALL
    assert queue.ahead(2 * LARGE) == 3 * LARGE + SMALL
    assert queue.ahead(SMALL) == 3 * SMALL


def test_no_stream_of_small_pictures_starves_a_large_one() -> None:
    queue, small = queue_of(large=[LARGE] * 2), 0
    seen = []
    while len(seen) < 2:
        queue.add(f"small {small}", [SMALL])
        small += 1
        turn = queue.take()
        assert turn is not None
        if turn.request == "large":
            seen.append(small)
    needed = LARGE / (LARGE_SHARE * SMALL)
    assert seen[0] <= needed + 2
    assert seen[1] - seen[0] <= needed + 2


SECONDS = st.lists(st.sampled_from([SMALL, SMALL_SECONDS, 2 * SMALL_SECONDS, LARGE]), min_size=1, max_size=6)
STEPS = st.lists(st.one_of(st.tuples(st.just("add"), SECONDS), st.just(("take", None)), st.just(("remove", None))))


@given(STEPS)
def test_every_picture_has_one_turn_unless_its_request_left(steps: list[tuple[str, list[float] | None]]) -> None:
    queue, added, gone = DecodeQueue[int](), dict[int, list[float]](), set[int]()
    turns: Counter[tuple[int, int]] = Counter()

    def take() -> bool:
        turn = queue.take()
        if turn is not None:
            assert turn.request not in gone
            assert turn.seconds == added[turn.request][turn.number]
            turns[turn.request, turn.number] += 1
        return turn is not None

    for number, (step, seconds) in enumerate(steps):
        if seconds is not None:
            added[number] = seconds
            queue.add(number, seconds)
        elif step == "remove" and added:
            left = min(added)
            gone.add(left)
            queue.remove(left)
        else:
            take()
        waiting = sum(
            each
            for request, pictures in added.items()
            for place, each in enumerate(pictures)
            if request not in gone and not turns[request, place]
        )
        assert abs(queue.seconds - waiting) < 1e-9
    while take():
        pass
    assert queue.seconds == 0
    assert max(turns.values(), default=1) == 1
    for request, pictures in added.items():
        if request not in gone:
            assert all(turns[request, place] for place in range(len(pictures)))
