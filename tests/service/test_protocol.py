"""What comes over a socket that is no plain request: refused in our words, or read by the parser that knows it."""

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from service.protocol import MAX_HEAD, Departure
from service.routes.calls import while_connected
from tests.fakes import PATIENCE_SECONDS
from tests.service.routes.test_errors import check_problem

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
    "a broken chunk": [b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"no length\r\n"],
}


@pytest.mark.parametrize("what", NO_HTTP)
def test_what_is_no_http_is_a_problem_and_the_end_of_the_connection(client: httpx.Client, what: str) -> None:
    answer = exchange(client, *NO_HTTP[what])[-1]
    check_problem(answer, 400, "bad_request")
    assert answer.headers["Connection"] == "close"
    assert client.get("/livez").status_code == 200


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


def test_a_client_that_has_left_already_costs_no_work() -> None:
    async def work() -> None:
        raise AssertionError("it was begun")

    left = Departure()
    left.over = True
    request = Request({"type": "http", "state": {"msmlp_departure": left}})
    with pytest.raises(ClientDisconnect):
        asyncio.run(while_connected(request, work()))
