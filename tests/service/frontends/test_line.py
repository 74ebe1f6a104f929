"""The line over a real pair of sockets."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from msmlp.service.frontends.line import Answer, Counted, Ended, Line, Lost
from tests.fakes import PATIENCE_SECONDS


class Heard:
    def __init__(self, line: Line) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        line.open(self.messages.put_nowait)

    async def get(self) -> Any:
        return await self.messages.get()


@asynccontextmanager
async def lines() -> AsyncIterator[tuple[Line, Line]]:
    near, far = map(Line, socket.socketpair())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield near, far
    finally:
        near.close()
        far.close()


def test_messages_of_any_size_arrive_whole_and_in_order() -> None:
    async def main() -> None:
        async with lines() as (near, far):
            Heard(near)
            sent = [Counted(bytes([number]) * size) for number, size in enumerate((0, 3, 2**15, 2**22, 1))]
            for message in sent:
                near.send(message)
            assert not near.idle  # more than the socket holds
            heard = Heard(far)
            assert [await heard.get() for _ in sent] == sent
            assert near.idle

    asyncio.run(main())


def test_a_connection_is_handed_over_and_works_on_the_other_side() -> None:
    async def main() -> None:
        async with lines() as (near, far):
            heard = Heard(far)
            here, there = socket.socketpair()
            with here:
                with there:
                    assert near.hand_over(there, kept=False)
                received = await heard.get()
                with received:
                    received.sendall(b"hello")
                    assert here.recv(10) == b"hello"
                assert here.recv(10) == b""  # nobody keeps a copy

    asyncio.run(main())


def test_a_side_that_reads_nothing_is_offered_no_more_connections() -> None:
    async def main() -> None:
        async with lines() as (near, _):
            here, there = socket.socketpair()
            with here, there:
                taken = 0
                while near.hand_over(there, kept=False):
                    taken += 1
                    assert taken < 10_000
                assert taken > 10

    asyncio.run(main())


def test_the_end_of_the_other_side_is_noticed_after_what_it_said() -> None:
    async def main() -> None:
        async with lines() as (near, far):
            near.send("last words")
            near.close()
            heard = Heard(far)
            assert [await heard.get(), await heard.get()] == ["last words", Ended()]
            far.send("to nobody")
            assert far.idle

    asyncio.run(main())


def test_each_question_gets_its_own_answer_and_no_answer_is_none() -> None:
    async def main() -> None:
        async with lines() as (near, far):
            Heard(near)

            def answer(message: Any) -> None:
                if message.what != "nothing":
                    far.send(Answer(message.number, message.what.upper()))

            far.open(answer)
            asked = near.ask("nothing", 0.01), near.ask("one", PATIENCE_SECONDS), near.ask("other", PATIENCE_SECONDS)
            assert await asyncio.gather(*asked) == [None, "ONE", "OTHER"]

    asyncio.run(main())


def test_who_waits_for_an_answer_learns_that_the_other_side_has_ended() -> None:
    async def main() -> None:
        async with lines() as (near, far):
            Heard(near)
            asked = asyncio.create_task(near.ask("one", 10 * PATIENCE_SECONDS))
            await asyncio.sleep(0)
            far.close()
            assert await asked is None

    asyncio.run(main())


def test_a_connection_that_finds_no_file_left_is_reported_and_the_next_one_arrives() -> None:
    async def main() -> None:
        async with lines() as (near, far):
            heard = Heard(far)
            here, there = socket.socketpair()
            with here, there:
                with few_files():
                    assert near.hand_over(there, kept=False)
                    assert await heard.get() == Lost()
                assert near.hand_over(there, kept=False)
                received = await heard.get()
                received.close()

    asyncio.run(main())


@contextmanager
def few_files() -> Iterator[None]:
    """While this process may not open another file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
