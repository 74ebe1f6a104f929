"""What a race decides: that an answer whose head waits for a body goes before its connection does."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from msmlp.service.http.retire import Returns
from msmlp.service.http.transports import Joining
from tests.fakes import PATIENCE_SECONDS

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Connection:
    between, kept, cycle, unanswered = True, True, None, False

    def __init__(self, transport: Joining) -> None:
        self.transport, self.seen = transport, SimpleNamespace(told=0.0)
        self.flow = SimpleNamespace(pause_reading=lambda: None, resume_reading=lambda: None)


class Line:
    def __init__(self) -> None:
        self.given: list[Any] = []

    def hand_over(self, connection: Any, *, kept: bool) -> bool:
        self.given.append(connection)
        return True


async def given(theirs: socket.socket, ours: socket.socket, all_of_them: bool) -> list[Any]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    connection: Any = Connection(Joining(transport, loop))
    watch: Any = SimpleNamespace(open={connection: None}, between=None, leaving=False)
    line: Any = Line()
    returns = Returns(watch, line)
    connection.transport.write(HEAD)
    if all_of_them:
        returns.begin()
    else:
        returns.give(1)
    returns._try()  # it may be due already for another one
    assert theirs.recv(100) == HEAD
    return line.given


@pytest.mark.parametrize("all_of_them", [False, True])
def test_an_answer_without_a_body_goes_before_its_connection(all_of_them: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(PATIENCE_SECONDS)
        assert len(asyncio.run(given(theirs, ours, all_of_them))) == 1
