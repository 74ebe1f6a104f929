"""From accepted sockets to connections, where no process is needed to see it."""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from msmlp.model.errors import DeviceError
from msmlp.service import certificate
from msmlp.service.http.handshakes import Handshakes
from msmlp.service.service import Service
from tests.certificates import issue, secured
from tests.fakes import PATIENCE_SECONDS
from tests.servers import fake_backend, fake_service


def service(weights: Path, folder: Path, **settings: object) -> Service:
    return fake_service(weights, fake_backend, **issue(folder).settings, **settings)


def pair() -> tuple[socket.socket, socket.socket]:
    """An accepted socket, and its client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), PATIENCE_SECONDS)
        ours, _ = listener.accept()
        ours.setblocking(False)
        return ours, theirs


def run(scene: Coroutine[None, None, None]) -> None:
    async def and_close() -> None:
        await scene
        await asyncio.sleep(0.1)  # until what was closed is closed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(and_close())


def test_a_certificate_that_is_half_renewed_lets_a_process_try_again(tiny_weights: Path, tmp_path: Path) -> None:
    """A caller's error would end the whole service."""
    renewing = service(tiny_weights, tmp_path)
    (tmp_path / "key.pem").write_text("half")
    with pytest.raises(DeviceError, match=r"key.pem holds no private key"):
        Handshakes(renewing)


def test_handshakes_are_counted_while_they_last_and_one_that_fails_is_logged_in_our_words(
    tiny_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        handshakes = Handshakes(service(tiny_weights, tmp_path, head_seconds=0))
        ours, theirs = pair()
        connecting = asyncio.create_task(handshakes.connect(asyncio.Protocol, ours, 0))
        await asyncio.sleep(0)
        assert (handshakes.number, handshakes.secure) == (1, True)
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(OSError, match="HTTP_REQUEST"):
            await connecting
        assert handshakes.number == 0
        theirs.close()

    run(scene())
    assert [each for each in caplog.messages if "TLS" in each] == ["a TLS handshake failed: http request"]


def test_the_oldest_makes_room_where_connections_and_handshakes_are_too_many(
    tiny_weights: Path, tmp_path: Path
) -> None:
    async def scene() -> None:
        handshakes = Handshakes(service(tiny_weights, tmp_path, max_connections=4))
        pairs = [pair() for _ in range(3)]
        waiting = []
        for ours, _ in pairs[:2]:
            waiting.append(asyncio.create_task(handshakes.connect(asyncio.Protocol, ours, 2)))
            await asyncio.sleep(0)
        last = asyncio.create_task(handshakes.connect(asyncio.Protocol, pairs[2][0], 2))
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert await asyncio.to_thread(pairs[0][1].recv, 1) == b""
        (await asyncio.to_thread(secured, pairs[2][1])).close()
        await last
        for _, theirs in pairs[:2]:
            theirs.close()
        await asyncio.wait(waiting)
        assert isinstance(waiting[1].exception(), ConnectionResetError)

    run(scene())


def test_the_port_for_metrics_has_no_handshake(tiny_weights: Path, tmp_path: Path) -> None:
    class Greeting(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(b"hello")
            transport.close()

    async def scene() -> None:
        ours, theirs = pair()
        handshakes = Handshakes(service(tiny_weights, tmp_path, metrics_port=ours.getsockname()[1]))
        await handshakes.connect(Greeting, ours, 0)
        assert await asyncio.to_thread(theirs.recv, 10) == b"hello"
        theirs.close()

    run(scene())


def test_new_connections_are_shown_a_renewed_certificate(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.01)

    async def scene() -> None:
        handshakes = Handshakes(service(tiny_weights, tmp_path))

        async def shown() -> str:
            ours, theirs = pair()
            connecting = asyncio.create_task(handshakes.connect(asyncio.Protocol, ours, 0))
            with await asyncio.to_thread(secured, theirs) as connection:
                await connecting
                return str(connection.getpeercert()["serialNumber"])  # type: ignore[index]

        first = await shown()
        issue(tmp_path)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await shown() == first:
                await asyncio.sleep(0.01)

    run(scene())
