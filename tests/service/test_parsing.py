"""Which large request is read next, and which are refused."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.errors import OverloadedError
from msmlp.service.parsing import OUTLIER, PATIENCE, START, ParseQueue, Parser

SECOND = round(1 / START)
"""As many bytes take a second, as long as nothing else is known."""


def queue(*sizes: float, max_wait: float = 0.0) -> ParseQueue[float]:
    """One with work of so many seconds, which is called by them and came at 0."""
    made: ParseQueue[float] = ParseQueue(max_wait)
    for seconds in sizes:
        made.add(seconds, "JSON", round(seconds * SECOND), 0.0)
    return made


def rest(made: ParseQueue[float], now: float = 0.0) -> list[float]:
    found = []
    while (job := made.take(now)) is not None:
        found.append(job)
        made.end(now, learn=False)
    return found


def test_the_smallest_is_next() -> None:
    made = queue(2.0, 0.5, 1.0)
    made.add(0.1, "JSON", round(0.1 * SECOND), 1.0)
    assert rest(made) == [0.1, 0.5, 1.0, 2.0]


def test_the_large_does_not_starve() -> None:
    made = queue(1.0)
    for number in range(100):
        made.add(-number, "JSON", round(0.01 * SECOND), float(number))
    order = rest(made)
    assert order.index(1.0) == PATIENCE, "it lets those pass that come within ten times its seconds"


def test_what_would_wait_too_long_is_refused_and_behind_nothing_any_is_let_in() -> None:
    made = queue(100.0, max_wait=2.0)
    assert made.take(0.0) == 100.0
    with pytest.raises(OverloadedError, match="the predicted wait is 40000 ms, the limit 2000 ms") as caught:
        made.add(0.1, "JSON", 1, 60.0)
    assert (caught.value.reason, caught.value.retry_after) == ("wait", 38)
    made.add(0.2, "JSON", 1, 99.0)
    made.end(100.0)
    assert rest(made) == [0.2]


def test_a_small_one_is_let_in_where_a_large_one_is_refused() -> None:
    made = queue(1.0, 1.1, max_wait=2.0)
    with pytest.raises(OverloadedError):
        made.add(1.3, "JSON", round(1.3 * SECOND), 0.0)
    made.add(0.1, "JSON", round(0.1 * SECOND), 0.0)
    assert rest(made) == [0.1, 1.0, 1.1]


def test_what_has_left_does_not_count() -> None:
    made = queue(1.0, 1.1, max_wait=2.0)
    with pytest.raises(OverloadedError):
        made.add(3.0, "JSON", 3 * SECOND, 0.0)
    made.remove(1.0)
    made.add(3.0, "JSON", 3 * SECOND, 0.0)
    assert rest(made) == [1.1, 3.0]


def predicted(made: ParseQueue[float], kind: str, now: float) -> float:
    """What it predicts for work that takes a second as long as nothing else is known."""
    made.add(1.0, kind, SECOND, now)
    made.take(now)
    with pytest.raises(OverloadedError) as caught:
        made.add(2.0, kind, 1, now)
    made.end(now, learn=False)
    return float(str(caught.value).split("wait is ")[1].split(" ms")[0]) / 1e3


@pytest.mark.parametrize(
    ("took", "least", "most"),
    [(5.0, 4.0, 5.0), (1e6, 2.0, OUTLIER), (0.0, 0.3, 0.5)],
    ids=["slow", "a thread that stood still", "work that took no time says little"],
)
def test_it_learns_what_a_byte_takes_of_each_kind_of_work(took: float, least: float, most: float) -> None:
    made = queue(1.0, max_wait=0.1)
    made.take(0.0)
    made.end(took)
    assert least < predicted(made, "JSON", 2e6) <= most
    assert predicted(made, "decompress", 2e6) == 1.0


def test_the_refused_are_told_different_times() -> None:
    made = queue(5.0, max_wait=2.0)
    made.take(0.0)
    told = []
    for _ in range(40):
        with pytest.raises(OverloadedError) as caught:
            made.add(0.2, "JSON", round(0.2 * SECOND), 1.0)
        told.append(caught.value.retry_after)
    assert told == sorted(told)
    assert len(set(told)) >= 8


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 3)), max_size=30))
def test_all_that_is_let_in_is_taken_once(work: list[tuple[float, float]]) -> None:
    made: ParseQueue[int] = ParseQueue(2.0)
    let_in = []
    for number, (now, seconds) in enumerate(sorted(work)):
        try:
            made.add(number, "JSON", round(seconds * SECOND), now)
        except OverloadedError:
            assert let_in
        else:
            let_in.append(number)
    taken = []
    while (job := made.take(5.0)) is not None:
        taken.append(job)
        made.end(5.0)
    assert sorted(taken) == let_in


def test_work_is_not_begun_once_its_caller_has_left() -> None:
    began: list[str] = []

    def work(name: str) -> Callable[[], str]:
        return lambda: began.append(name) or name  # type: ignore[func-returns-value]

    async def main() -> None:
        parser, opened = Parser(0), threading.Event()
        held = parser.thread.submit(opened.wait)
        left, stays = (asyncio.create_task(parser.run("JSON", 1, work(name))) for name in ("left", "stays"))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        opened.set()
        assert await stays == "stays"
        assert held.result()
        assert await parser.run("JSON", 1, work("next")) == "next"

    asyncio.run(main())
    assert began == ["stays", "next"]


def test_an_error_is_the_callers_and_those_behind_are_read() -> None:
    async def main() -> None:
        parser = Parser(1.0)
        with pytest.raises(ZeroDivisionError):
            await parser.run("JSON", 1, lambda: 1 // 0)
        assert await parser.run("JSON", 1, lambda: 1) == 1

    asyncio.run(main())


def test_what_failed_work_held_is_freed_at_once() -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def work() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError

    async def main() -> None:
        parser = Parser(1.0)
        for _ in range(3):
            with suppress(ValueError):
                await parser.run("JSON", 1, work)
        await parser.run("JSON", 1, int)  # the thread may still be about to forget the one before
        await parser.run("JSON", 1, int)
        assert [each() for each in held] == [None] * 3

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
