"""The load generator against servers whose every answer is written by hand."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

import pytest

from msmlp.bench.generator import EVERY, KEPT, Load, Seen, offer, request_bytes

Answer = Callable[[int, socket.socket], bool]
"""From a request's number: send something → whether the connection is kept."""


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server for one connection at a time, and the requests it has read."""
    listener, read = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                while head := b"".join(takewhile(lambda line: line.strip(), iter(lines.readline, b""))):
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    read.append(head + b"\r\n" + lines.read(length))
                    if not answer(len(read), connection):
                        break

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", read
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def requests(url: str) -> tuple[bytes, ...]:
    return tuple(request_bytes(url, "/classify?top_k=1", content, "image/png") for content in (b"one", b"three"))


def well(number: int, connection: socket.socket) -> bool:
    connection.sendall(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 4\r\n\r\nfi")
    connection.sendall(b"ne")  # an answer may come in pieces
    return True


def test_every_request_is_sent_whole_and_in_turn_and_counted() -> None:
    with answering(well) as (url, read):
        seen = offer(Load(url, requests(url), 1, 0.1))
        sent = requests(url)
    assert seen.statuses == {"200": len(read)}
    assert len(seen.latencies) == len(read)
    assert read == [sent[n % 2] for n in range(len(read))]
    assert set(seen.answers) == {b"fine"}
    assert seen.asked == [n % 2 for n in range(0, len(read), EVERY)][:KEPT]
    assert seen.seconds > 0.1
    assert 0 < seen.percentiles_ms()[0] <= seen.percentiles_ms()[2]


def test_every_answer_is_kept_where_that_is_asked_for() -> None:
    with answering(well) as (url, read):
        seen = offer(Load(url, requests(url), 1, 0.1), Seen(every=1, most=3 * KEPT))
    assert len(seen.answers) == min(len(read), 3 * KEPT)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (b"", "IncompleteReadError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfi", "IncompleteReadError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "ValueError"),
    ],
)
def test_what_fails_is_counted_and_the_next_goes_over_a_new_connection(second: bytes, error: str) -> None:
    def answer(number: int, connection: socket.socket) -> bool:
        if number != 2:
            return well(number, connection)
        connection.sendall(second)
        return False

    with answering(answer) as (url, _):
        seen = offer(Load(url, requests(url), 1, 0.3))
    assert seen.statuses.pop(error) == 1
    assert seen.statuses.keys() == {"200"}


def test_a_connection_the_server_closes_is_opened_again() -> None:
    def answer(number: int, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 429 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        return False

    with answering(answer) as (url, read):
        seen = offer(Load(url, requests(url), 1, 0.1))
    assert seen.statuses == {"429": len(read)}
    assert seen.latencies == []


def test_an_unreachable_server_is_an_error_of_its_own() -> None:
    seen = offer(Load("http://127.0.0.1:9", (b"x",), 2, 0.05))
    assert seen.statuses.keys() == {"ConnectionRefusedError"}
