"""The channel over a real pair of sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msmlp.service.frontends.channel import PIECE, Answer, Channel
from tests.fakes import PATIENCE_SECONDS


class Heard:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.connections: asyncio.Queue[socket.socket | None] = asyncio.Queue()
        self.ended = asyncio.Event()

    def on_connection(self, connection: socket.socket | None) -> None:
        self.connections.put_nowait(connection)

    def on_message(self, message: Any) -> None:
        self.messages.put_nowait(message)

    def on_end(self) -> None:
        self.ended.set()


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Channel, Channel]]:
    near, far = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield near, far
    finally:
        near.close()
        far.close()


def test_messages_of_any_size_arrive_whole_and_in_order() -> None:
    async def main() -> None:
        async with channels() as (near, far):
            near.open(Heard())
            sent = [Answer(number, bytes([number]) * size) for number, size in enumerate((0, 3, PIECE, 100 * PIECE, 1))]
            for message in sent:
                near.send(message)
            assert not near.idle  # more than the socket holds
            heard = Heard()
            far.open(heard)
            assert [await heard.messages.get() for _ in sent] == sent
            assert near.idle

    asyncio.run(main())


def test_a_connection_is_handed_over_and_works_on_the_other_side() -> None:
    async def main() -> None:
        async with channels() as (near, far):
            heard = Heard()
            far.open(heard)
            here, there = socket.socketpair()
            with here:
                with there:
                    assert near.hand_over(there)
                received = await heard.connections.get()
                assert received is not None
                with received:
                    received.sendall(b"hello")
                    assert here.recv(10) == b"hello"
                assert here.recv(10) == b""  # nobody keeps a copy

    asyncio.run(main())


def test_a_side_that_reads_nothing_is_offered_no_more_connections() -> None:
    async def main() -> None:
        async with channels() as (near, _):
            here, there = socket.socketpair()
            with here, there:
                taken = 0
                while near.hand_over(there):
                    taken += 1
                    assert taken < 10_000
                assert taken > 10

    asyncio.run(main())


def test_the_end_of_the_other_side_is_noticed_after_what_it_said() -> None:
    async def main() -> None:
        async with channels() as (near, far):
            near.send("last words")
            near.close()
            heard = Heard()
            far.open(heard)
            await heard.ended.wait()
            assert heard.messages.get_nowait() == "last words"
            far.send("to nobody")
            assert far.idle

    asyncio.run(main())
