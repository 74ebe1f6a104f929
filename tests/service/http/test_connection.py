"""What both parsers' connections tell the watch. The rest is tested where it is used, in test_protocol.py."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from msmlp.service.http.connection import Connection
from tests.fakes import PATIENCE_SECONDS

SIZE = 2**24
"""More bytes than both systems hold for a connection."""


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends over TCP; the second one's system takes little."""
    other = socket.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other.connect(listener.getsockname())
        return listener.accept()[0], other


def sent(transport: asyncio.Transport) -> int:
    counting = SimpleNamespace(
        written=SIZE,
        get_write_buffer_size=transport.get_write_buffer_size,
        get_extra_info=transport.get_extra_info,
    )
    return cast(Any, Connection.sent).fget(SimpleNamespace(transport=counting))  # type: ignore[no-any-return]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_sent_is_what_the_client_took_and_not_what_our_system_holds_for_it(loop: Any) -> None:
    """Our system holds 4 MB, and takes nothing more until a third of them went: seconds for a slow client."""

    async def main() -> None:
        ours, theirs = connected()
        with theirs:
            theirs.setblocking(False)
            running = asyncio.get_running_loop()
            transport, _ = await running.create_connection(asyncio.Protocol, sock=ours)
            transport.write(bytes(SIZE))
            await asyncio.sleep(0.1)
            before, held, read = sent(transport), transport.get_write_buffer_size(), 0
            assert before < SIZE - held, "our system holds some"
            async with asyncio.timeout(PATIENCE_SECONDS):
                while sent(transport) < before + 2**19:
                    read += len(await running.sock_recv(theirs, 2**16))
            assert read < 2**20
            assert transport.get_write_buffer_size() == held, "for which it took nothing more"
            transport.abort()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
