"""What comes over a socket that is no plain request: refused in our words, or read by the parser that knows it."""

import asyncio
import gc
import json
import logging
import re
import socket
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from msmlp.service.http.app import UVICORN
from msmlp.service.http.connection import CHUNK, MAX_HEAD, MAX_HEADERS, Departure
from msmlp.service.http.protocol import MAX_WAITING, Protocol
from msmlp.service.http.responses import while_connected
from msmlp.service.http.watch import Watch
from msmlp.service.settings import Settings
from msmlp.service.telemetry.metrics import Metrics
from msmlp.service.telemetry.record import RequestRecords
from tests.fakes import PATIENCE_SECONDS
from tests.servers import fake_backend, fake_service, serving
from tests.service.http.routes.test_errors import check_problem

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def exchange(client: httpx.Client, *pieces: bytes) -> list[httpx.Response]:
    """The pieces in as many packets on one connection → all answers until its end."""
    with socket.create_connection(
        (client.base_url.host, client.base_url.port or 80), timeout=PATIENCE_SECONDS
    ) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        for number, piece in enumerate(pieces):
            if number:
                # Until what was sent has been looked at: a request of another connection comes back.
                assert client.get("/livez").status_code == 200
            connection.sendall(piece)
        while more := connection.recv(2**16):
            received += more
    return list(answers(received))


def answers(received: bytes) -> Any:
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = httpx.Headers([line.split(": ", 1) for line in lines])
        length = int(headers["Content-Length"])
        body, received = received[:length], received[length:]
        yield httpx.Response(int(status.split()[1]), headers=headers, content=body)


NO_HTTP = {
    "no HTTP": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)],
    "another language": [b"EHLO example.com\r\n\r\n"],
    "a space before a colon": [b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n"],
    "no bytes of a path": [b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"],
    "two lengths": [b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"],
    "a length that is none": [b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"],
    "HTTP/2 with prior knowledge": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    "a head without end": [b"GET /livez HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD - 100), b"x" * 200],
    "headers without end": [b"GET /livez HTTP/1.1\r\n" + b"X: x\r\n" * (MAX_HEAD // 6 - 10), b"X: x\r\n" * 10],
    "no Host": [b"GET /livez HTTP/1.1\r\n\r\n"],
    "two Hosts": [b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"],
    "a long head at once": [b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n"],
    "a long head at once, of short lines": [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * (MAX_HEAD // 6) + b"\r\n"
    ],
    "a long target": [b"GET /livez?" + b"x" * MAX_HEAD + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
    "a long head whose end parsers could disagree on": [
        b"GET /livez HTTP/1.1\nHost: x\nX: " + b"x" * MAX_HEAD + b"\n\n"
    ],
    "a long head of an odd method": [b"BREW /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n"],
    "a long head behind a request": [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n"
    ],
    "a broken chunk": [b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"no length\r\n"],
}


@pytest.mark.parametrize("what", NO_HTTP)
def test_what_is_no_http_is_a_problem_and_the_end_of_the_connection(client: httpx.Client, what: str) -> None:
    answer = exchange(client, *NO_HTTP[what])[-1]
    check_problem(answer, 400, "bad_request")
    assert answer.headers["Connection"] == "close"
    assert client.get("/livez").status_code == 200


def test_a_refusal_reaches_a_client_that_still_sends(client: httpx.Client) -> None:
    """A connection that is closed with bytes unread is reset."""
    with socket.create_connection(
        (client.base_url.host, client.base_url.port or 80), timeout=PATIENCE_SECONDS
    ) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + b"X: x\r\n" * (MAX_HEADERS + 9))
        assert connection.recv(12) == b"HTTP/1.1 400"
        for _ in range(50):
            connection.sendall(b"X: x\r\n" * 10_000)
        received = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert received.endswith(b"}")


@pytest.mark.parametrize("last", [b"1.0\r\nX: x", b"1.1\r\nConnection: close"], ids=["1.0", "close"])
@pytest.mark.parametrize("target", [b"/nowhere", b"/admin"])
def test_an_early_answer_reaches_a_client_that_sends_its_last_body(
    client: httpx.Client, target: bytes, last: bytes
) -> None:
    head = b"POST %b HTTP/%b\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" % (target, last)
    found = exchange(client, head, *[bytes(300_000)] * 10)
    assert [answer.status_code for answer in found] == [404]


@pytest.mark.parametrize("version", [b" HTTP/2.0", b" HTTP/1.2", b" HTTP/3.0", b""], ids=["2.0", "1.2", "3.0", "0.9"])
@pytest.mark.parametrize("method", [b"GET", b"BREW"], ids=["httptools", "h11"])
def test_another_version_of_http_is_refused(client: httpx.Client, method: bytes, version: bytes) -> None:
    (answer,) = exchange(client, method + b" /livez" + version + b"\r\nHost: x\r\n\r\n" + GET)
    check_problem(answer, 400, "bad_request")
    assert answer.headers["Connection"] == "close"


UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
IN_CHUNKS = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n%sTransfer-Encoding: chunked\r\n\r\n"
WAYS = pytest.mark.parametrize("upgrade", [b"", UPGRADE], ids=["httptools", "h11"])


def chunks(count: int, size: int) -> bytes:
    return (b"%x\r\n%s\r\n" % (size, b"x" * size)) * count


@WAYS
def test_a_body_of_tiny_chunks_is_refused_once_they_are_many(client: httpx.Client, upgrade: bytes) -> None:
    few, many = (900, 1100) if upgrade else (8000, 9000)
    first, last = exchange(client, IN_CHUNKS % upgrade + chunks(few, 1) + b"0\r\n\r\n", LAST)
    assert (first.status_code, last.status_code) == (422, 200)  # no picture
    for pieces in ([IN_CHUNKS % upgrade + chunks(many, 1)], [IN_CHUNKS % upgrade, chunks(many, 1)]):
        (answer,) = exchange(client, *pieces)
        assert "too many chunks" in check_problem(answer, 400, "bad_request")["detail"]


@WAYS
def test_large_chunks_are_set_against_small_ones(client: httpx.Client, upgrade: bytes) -> None:
    pair = chunks(1, 2) + chunks(1, 2 * CHUNK - 2)
    first, last = exchange(client, IN_CHUNKS % upgrade + pair * 4500 + b"0\r\n\r\n", LAST)
    assert (first.status_code, last.status_code) == (422, 200)


def test_a_body_of_a_known_length_comes_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msmlp.service.http.protocol.MAX_SMALL", CHUNK)
    app = Held()
    app.go.set()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        for sent in range(5):
            read = protocol.read
            writer.write(b"%d" % sent)
            while protocol.read == read:
                await asyncio.sleep(0)
        assert (await reader.readuntil(b"01234")).startswith(b"HTTP/1.1 200")

    talk(app, scenario)


@WAYS
def test_a_head_has_a_bounded_number_of_headers(client: httpx.Client, upgrade: bytes) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + upgrade
    most = MAX_HEADERS - head.count(b"\r\n") + 1
    first, last = exchange(client, head + b"a:\r\n" * most + b"\r\n", LAST)
    assert (first.status_code, last.status_code) == (200, 200)
    for pieces in (
        [head + b"a:\r\n" * (most + 1) + b"\r\n"],
        [head + b"a:\r\n" * 100, b"a:\r\n" * 7000],
        [head.replace(b"GET", b"FOO!") + b"a:\r\n" * 7000 + b"\r\n"],
    ):
        (answer,) = exchange(client, *pieces)
        assert f"more than {MAX_HEADERS} lines" in check_problem(answer, 400, "bad_request")["detail"]
    answers = exchange(client, GET + head + b"a:\r\n" * 7000)
    assert [answer.status_code for answer in answers] == [200, 400]


def test_trailers_too_where_they_cost_much(client: httpx.Client) -> None:
    for trailers in (b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", b"a: b\r\n" * 1000):
        (answer,) = exchange(client, IN_CHUNKS % UPGRADE + b"0\r\n" + trailers)
        assert f"more than {MAX_HEADERS} lines" in check_problem(answer, 400, "bad_request")["detail"]
    first, last = exchange(client, IN_CHUNKS % UPGRADE + b"0\r\n" + b"a: b\r\n" * 100 + b"\r\n", LAST)
    assert (first.status_code, last.status_code) == (422, 200)


CODED = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n%s\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["httptools", "h11"])
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", 400, "bad_request"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", 400, "bad_request"),
        (b"Transfer-Encoding: gzip, chunked", 501, "not_implemented"),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501, "not_implemented"),
        (b"Transfer-Encoding: gzip", 501, "not_implemented"),
    ],
)
def test_a_body_whose_end_is_in_doubt_is_refused_and_nothing_behind_it_is_read(
    client: httpx.Client, fields: bytes, status: int, code: str, upgrade: bytes
) -> None:
    (answer,) = exchange(client, CODED % (b"/classify", upgrade + fields) + GET)
    check_problem(answer, status, code)
    assert answer.headers["Connection"] == "close"
    assert "Transfer-Encoding" in answer.json()["detail"]
    (first, second) = exchange(client, GET + CODED % (b"/classify", upgrade + fields) + GET)
    assert (first.status_code, second.status_code) == (200, status)


def test_under_v2_a_refusal_has_that_protocols_form(client: httpx.Client) -> None:
    (answer,) = exchange(client, CODED % (b"/v2/models/msmlp/infer?a=b", b"Transfer-Encoding: gzip, chunked"))
    assert (answer.status_code, list(answer.json())) == (501, ["error"])


def test_chunked_is_written_as_one_likes(client: httpx.Client) -> None:
    coded = CODED % (b"/classify", b"Transfer-Encoding: Chunked")
    assert [answer.status_code for answer in exchange(client, coded, LAST)] == [422, 200]


def test_refusals_are_counted_and_few_of_them_logged(tiny_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        for _ in range(10):
            for odd in (NO_HTTP["another language"], NO_HTTP["no HTTP"], [b"BREW / HTTP/1.1\r\nHost : x\r\n\r\n"]):
                exchange(client, *odd)
        assert 'msmlp_requests_total{route="other",status="400"} 30.0' in client.get("/metrics").text
    lines = [record for record in caplog.records if "refused:" in record.message or "nvalid" in record.message]
    assert 1 <= len(lines) <= 3, "one in ten seconds"
    assert all(record.request_id for record in lines)  # type: ignore[attr-defined]


def test_a_chunk_that_breaks_behind_an_answer_is_no_fault_of_the_service(
    tiny_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        found = exchange(client, b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")
        assert [answer.status_code for answer in found] == [400]
        assert client.get("/livez").status_code == 200
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("BREW", "/model", 405),
        ("BREW", "/nowhere", 404),
        ("get", "/model", 405),
        ("CREPE", "/classify", 405),
        ("OPTIONS", "*", 404),
        ("CONNECT", "example.com:80", 404),
    ],
)
@pytest.mark.parametrize("split", [0, 1, 2, 12])
def test_any_method_and_target_has_the_applications_answer(
    client: httpx.Client, method: str, path: str, status: int, split: int
) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Request-ID: odd-1\r\n\r\n".encode()
    pieces = [request[:split], request[split:]] if split else [request]
    first, second = exchange(client, *pieces, LAST)
    code = {404: "not_found", 405: "method_not_allowed"}[status]
    assert check_problem(first, status, code)["request_id"] == "odd-1"
    assert (second.status_code, second.json()) == (200, {"live": True})  # and the connection is kept


def test_after_a_plain_request_too(client: httpx.Client) -> None:
    assert [a.status_code for a in exchange(client, GET, b"BREW /model HTTP/1.1\r\nHost: x\r\n\r\n", LAST)] == [
        200,
        405,
        200,
    ]


BODY = b"\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
BREW = b"BREW /model HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("before", [GET, POST, b"\r\n\r\n" + GET, GET + POST + b"\r\n" + GET], ids=range(4))
def test_behind_other_requests_wherever_packets_end(client: httpx.Client, before: bytes) -> None:
    whole = before + BREW + LAST
    expected = [{b"G": 200, b"P": 422}[first] for first in re.findall(rb"(?:^|\n)([GP])(?:ET|OST) /[cl]", before)]
    for split in range(0, len(whole), 7):
        pieces = [whole[:split], whole[split:]] if split else [whole]
        assert [a.status_code for a in exchange(client, *pieces)] == [*expected, 405, 200], split


def test_what_is_hidden_in_a_body_of_chunks_is_never_taken_for_a_request(client: httpx.Client) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    # Where the next request begins is not known here, so it is refused.
    assert [a.status_code for a in exchange(client, chunked + BREW + LAST)] == [422, 400]


def test_requests_in_one_packet_are_answered_in_turn(client: httpx.Client) -> None:
    assert [a.status_code for a in exchange(client, GET * 3 + LAST)] == [200] * 4


@pytest.mark.parametrize("wish", ["websocket", "h2c"])
def test_a_wish_for_another_protocol_is_a_request_like_any_other(client: httpx.Client, wish: str) -> None:
    upgrade = f"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {wish}\r\n\r\n".encode()
    for pieces in ([upgrade + LAST], [upgrade, LAST]):
        assert [a.status_code for a in exchange(client, *pieces)] == [200, 200]


def test_a_request_whose_body_is_the_next_packet(client: httpx.Client) -> None:
    post = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\n"
    first, second = exchange(client, post, b"abc" + LAST)
    assert (first.status_code, second.status_code) == (422, 200)
    assert json.loads(first.content)["code"] == "undecodable_image"


def test_only_http_1_0_may_do_without_a_host(client: httpx.Client) -> None:
    assert exchange(client, b"GET /livez HTTP/1.0\r\n\r\n")[0].status_code == 200
    assert "one Host header" in exchange(client, b"GET /livez HTTP/1.1\r\n\r\n")[0].json()["detail"]


@pytest.mark.parametrize("way", ["in the same packet", "in the next packet", "in chunks"])
def test_the_body_behind_a_wish_for_another_protocol_is_read(
    client: httpx.Client, digit_files: list[bytes], way: str
) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    head += b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    picture = digit_files[0]
    if way == "in chunks":
        pieces = [head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(picture), picture), LAST]
    else:
        head += b"Content-Length: %d\r\n\r\n" % len(picture)
        pieces = [head + picture + LAST] if way == "in the same packet" else [head, picture + LAST]
    first, second = exchange(client, *pieces)
    assert (first.status_code, second.status_code) == (200, 200)
    assert len(first.json()["results"]) == 1


def test_the_body_behind_such_a_wish_is_read_behind_other_requests_too(client: httpx.Client) -> None:
    wish = b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n"
    pieces = GET + wish % len(GET) + GET + LAST
    assert [answer.status_code for answer in exchange(client, pieces)] == [200, 422, 200]


class Held:
    """An application that answers when it is let, with what it was sent; it streams if told so."""

    def __init__(self, *, streams: bool = False) -> None:
        self.streams, self.scopes = streams, list[Scope]()
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        start = {"type": "http.response.start", "status": 200}
        if self.streams:
            await send({**start, "headers": []})
            await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.reached.set()
        await self.go.wait()
        if self.streams:
            await send({"type": "http.response.body", "body": b"last"})
        else:
            await send({**start, "headers": [(b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})


def watch(**settings: Any) -> Watch:
    """One that does not sweep by itself."""
    parts: dict[str, Any] = {
        "settings": Settings(**settings),
        "metrics": Metrics((1, 2, 3), "any", "1"),
        "records": RequestRecords(),
    }
    parts["connections"] = parts["settings"].max_connections
    return Watch(SimpleNamespace(**parts))  # type: ignore[arg-type]


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Protocol], Awaitable[None]]


def talk(app: Held, scenario: Talk) -> None:
    """Run a scenario on one connection to an application of its own."""

    async def main() -> None:
        config, made, state = uvicorn.Config(app, **UVICORN), list[Protocol](), ServerState()

        def make() -> Protocol:
            made.append(Protocol(config, state, {"msmlp_watch": watch()}, asyncio.get_running_loop()))
            return made[-1]

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await scenario(reader, writer, made[0] if made else await _first(made))
        finally:
            writer.close()
            await ended(state)
            server.close()

    asyncio.run(main())


async def ended(state: ServerState) -> None:
    """Until the server has seen the end of all connections; one that was refused lingers until its client closes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while state.connections:
            await asyncio.sleep(0.01)


async def _first(made: list[Protocol]) -> Protocol:
    while not made:
        await asyncio.sleep(0)
    return made[0]


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side closes, however abruptly."""
    received = b""
    try:
        while more := await reader.read(2**16):
            received += more
    except ConnectionResetError:
        pass
    return received


ECHO = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
GARBAGE = b"\x16\x03\x01 no request\r\n\r\n"


@pytest.mark.parametrize("together", [True, False])
def test_garbage_behind_a_running_request_is_refused_after_its_answer(together: bool) -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(ECHO + (GARBAGE if together else b""))
        await app.reached.wait()
        if not together:
            writer.write(GARBAGE)
            while not protocol.flow.read_paused:
                await asyncio.sleep(0)
        app.go.set()
        first, second = answers(await rest(reader))
        assert (first.status_code, first.content, second.status_code) == (200, b"hi", 400)

    talk(app, scenario)


def test_nothing_is_written_into_an_answer_under_way() -> None:
    app = Held(streams=True)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(ECHO + GARBAGE)
        await app.reached.wait()
        app.go.set()
        _, _, body = (await rest(reader)).partition(b"\r\n\r\n")
        assert body.startswith(b"6\r\nfirst \r\n4\r\nlast\r\n0\r\n\r\nHTTP/1.1 400 ")

    talk(app, scenario)


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])  # read by h11
def test_nor_where_the_body_that_is_being_answered_breaks(upgrade: bytes) -> None:
    app = Held(streams=True)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + upgrade + b"\r\n1\r\na\r\n")
        received = await reader.readuntil(b"first \r\n")
        writer.write(b"no length\r\n")
        writer.write_eof()
        received += await rest(reader)
        assert received.count(b"HTTP/1.1") == 1

    talk(app, scenario)


def test_an_odd_method_behind_a_running_request_has_its_answer_in_turn() -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(ECHO)
        await app.reached.wait()
        writer.write(b"BREW / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\npot")
        while not protocol.flow.read_paused:
            await asyncio.sleep(0)
        app.go.set()
        assert [answer.content for answer in answers(await rest(reader))] == [b"hi", b"pot"]

    talk(app, scenario)


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["httptools", "h11"])
@pytest.mark.parametrize("kilobytes", [0, 1, 63, 64, 65, 127, 128, 129, 192, 256, 1000])
def test_a_client_that_leaves_is_noticed_whatever_it_sent(kilobytes: int, upgrade: bytes) -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        size = 1024 * kilobytes
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (upgrade, size) + bytes(size))
        await app.reached.wait()
        departure = app.scopes[0]["state"]["msmlp_departure"]
        assert not departure.over
        writer.close()
        while not departure.over:
            await asyncio.sleep(0.001)

    talk(app, scenario)


def test_a_client_that_leaves_is_noticed_at_its_last_request_too() -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(ECHO)
        await app.reached.wait()
        writer.write(GET)
        while not protocol.pipeline:
            await asyncio.sleep(0)
        app.reached.clear()
        app.go.set()
        await app.reached.wait()
        app.go.clear()
        assert not protocol.flow.read_paused
        app.go.set()

    talk(app, scenario)


def test_a_flood_of_requests_is_not_held() -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(ECHO)
        await app.reached.wait()
        writer.write(GET * 100_000)
        while not protocol.flow.read_paused:
            await asyncio.sleep(0)
        protocol.flow.resume_reading()  # as an application does that waits for more
        await asyncio.sleep(0.1)
        assert protocol.flow.read_paused
        assert len(protocol.pipeline) == MAX_WAITING
        app.go.set()
        *served, refused = answers(await rest(reader))
        assert [answer.status_code for answer in served] == [200] * (1 + MAX_WAITING)
        assert f"more than {MAX_WAITING} pipelined requests" in refused.json()["detail"]

    talk(app, scenario)


def test_requests_in_many_packets_are_read_when_those_before_are_answered() -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(ECHO)
        await app.reached.wait()
        writer.write(ECHO[:-1])
        while not protocol.flow.read_paused:
            await asyncio.sleep(0)
        protocol.flow.resume_reading()
        writer.write(b"!" + ECHO * 200 + LAST)
        app.go.set()
        received = [answer.content for answer in answers(await rest(reader))]
        assert received[:2] == [b"hi", b"h!"]

    talk(app, scenario)


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"


def test_a_trailer_is_no_header() -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        app.go.set()
        writer.write((CHUNKED + b"Content-Encoding: gzip\r\nX-Request-ID: posed\r\n\r\n") * 2 + LAST)
        assert [answer.content for answer in answers(await rest(reader))] == [b"hi", b"hi", b""]
        names = [[name for name, _ in scope["headers"]] for scope in app.scopes]
        assert names == [[b"host", b"transfer-encoding"]] * 2 + [[b"host", b"connection"]]

    talk(app, scenario)


@pytest.mark.parametrize("piece", [b"x" * 999, b"X: x\r\n" * 166])
def test_trailers_without_end_are_refused(piece: bytes) -> None:
    app = Held()

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: Protocol) -> None:
        writer.write(CHUNKED + b"X: ")
        sent = 0
        # Writing on to a closed connection could lose the answer that was already sent.
        while not protocol.transport.is_closing() and sent < 8 * MAX_HEAD:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            await asyncio.sleep(0)
        (answer,) = answers(await rest(reader))
        check_problem(answer, 400, "bad_request")

    talk(app, scenario)


@pytest.mark.parametrize("line", [b"Host : x\r\n", b"Host: x\r\n" + b"a:\r\n" * 7000], ids=["no HTTP", "too many"])
def test_a_connection_that_is_handed_over_leaves_nothing_to_collect(line: bytes) -> None:
    """A garbage collection comes rarely."""
    made: list[weakref.ref[Protocol]] = []

    async def main() -> None:
        config, app = uvicorn.Config(Held(), **UVICORN), {"msmlp_watch": watch()}
        state = ServerState()

        def make() -> Protocol:
            protocol = Protocol(config, state, app, asyncio.get_running_loop())
            made.append(weakref.ref(protocol))
            return protocol

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"FOO! / HTTP/1.1\r\n" + line + b"\r\n")
        assert b"400 Bad Request" in await rest(reader)
        writer.close()
        await ended(state)
        server.close()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        assert [protocol() for protocol in made] == [None]
    finally:
        gc.enable()


def test_a_client_that_has_left_already_costs_no_work() -> None:
    async def work() -> None:
        raise AssertionError("it was begun")

    left = Departure()
    left.over = True
    request = Request({"type": "http", "state": {"msmlp_departure": left}})
    with pytest.raises(ClientDisconnect):
        asyncio.run(while_connected(request, work()))
