"""Over TLS: what a client has not read is known, and connections end with and without its goodbye."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from msmlp.service.certificate import Certificate
from msmlp.service.http.transports import PIECE, Paced
from tests.certificates import issue, trusting
from tests.fakes import PATIENCE_SECONDS

SIZE = 2**24
"""More bytes than both systems hold for a connection."""


class Ours(asyncio.Protocol):
    """The server's side: `paced` once it is connected."""

    paced: Paced

    def __init__(self) -> None:
        self.made, self.lost = asyncio.Event(), asyncio.Event()
        self.received = 0

    def connection_made(self, transport: Any) -> None:
        transport.set_write_buffer_limits(high=1)
        self.paced = Paced(transport, asyncio.get_running_loop())
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def resume_writing(self) -> None:
        self.paced.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


Scene = Callable[[Ours, ssl.SSLSocket], Awaitable[None]]


@pytest.fixture(params=[uvloop.new_event_loop, None], ids=["uvloop", "asyncio"])
def play(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    """Runs a scene between our side and a client with a blocking socket whose system takes little."""
    context = Certificate(*issue(tmp_path)).context

    async def main(scene: Scene) -> None:
        ours, loop = Ours(), asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            plain.settimeout(PATIENCE_SECONDS)
            plain.connect(listener.getsockname())
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            shaken = asyncio.to_thread(trusting().wrap_socket, plain, server_hostname="127.0.0.1")
            _, theirs = await asyncio.gather(
                loop.connect_accepted_socket(
                    lambda: ours, accepted, ssl=context, ssl_handshake_timeout=PATIENCE_SECONDS
                ),
                shaken,
            )
            with theirs:
                await ours.made.wait()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await scene(ours, theirs)
                ours.paced.abort()
                await ours.lost.wait()

    def run(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main(scene))

    return run


def read(theirs: ssl.SSLSocket, size: int) -> int:
    """That many bytes, or all until the end."""
    done = 0
    while done < size and (more := theirs.recv(2**16)):
        done += len(more)
    return done


def test_what_a_client_does_not_read_waits_where_it_is_seen(play: Callable[[Scene], None]) -> None:
    async def scene(ours: Ours, theirs: ssl.SSLSocket) -> None:
        ours.paced.write(bytes(SIZE))
        await asyncio.sleep(0.1)
        before = ours.paced.get_write_buffer_size()
        assert before > SIZE // 4
        assert ours.paced.written == SIZE
        await asyncio.to_thread(read, theirs, SIZE // 2)
        await asyncio.sleep(0.1)
        after = ours.paced.get_write_buffer_size()
        assert 0 < after < before - SIZE // 4, "also once it has begun to read"
        await asyncio.to_thread(read, theirs, SIZE // 2)
        assert ours.paced.get_write_buffer_size() == 0

    play(scene)


def test_a_small_answer_leaves_at_once(play: Callable[[Scene], None]) -> None:
    async def scene(ours: Ours, theirs: ssl.SSLSocket) -> None:
        ours.paced.write(b"HTTP/1.1 200 OK\r\n\r\n")
        ours.paced.write(b"body")
        assert await asyncio.to_thread(theirs.recv, 100) == b"HTTP/1.1 200 OK\r\n\r\nbody"
        ours.paced.write(bytes(PIECE + 1))
        assert await asyncio.to_thread(read, theirs, PIECE + 1) == PIECE + 1

    play(scene)


def test_what_was_written_before_a_close_arrives_however_long_it_takes(play: Callable[[Scene], None]) -> None:
    async def scene(ours: Ours, theirs: ssl.SSLSocket) -> None:
        ours.paced.write(bytes(SIZE))
        ours.paced.close()
        ours.paced.write(b"too late")
        assert ours.paced.is_closing()
        await asyncio.sleep(1.5)  # longer than a client that has all may take for its goodbye
        assert await asyncio.to_thread(read, theirs, 2 * SIZE) == SIZE

    play(scene)


def test_a_client_that_says_no_goodbye_is_not_waited_for(play: Callable[[Scene], None]) -> None:
    async def scene(ours: Ours, theirs: ssl.SSLSocket) -> None:
        ours.paced.write(b"all")
        ours.paced.close()
        await ours.lost.wait()  # the client reads and closes nothing
        assert await asyncio.to_thread(theirs.recv, 100) == b"all"

    play(scene)


@pytest.mark.parametrize("play", [uvloop.new_event_loop], ids=["uvloop"], indirect=True)
def test_a_client_that_still_sends_reads_its_answer_to_the_end(play: Callable[[Scene], None]) -> None:
    async def scene(ours: Ours, theirs: ssl.SSLSocket) -> None:
        ours.paced.write(b"refused")
        ours.paced.write_eof()
        await asyncio.to_thread(theirs.sendall, bytes(SIZE))
        assert await asyncio.to_thread(read, theirs, 100) == len(b"refused")
        assert not ours.lost.is_set()
        theirs.close()
        await ours.lost.wait()

    play(scene)
