"""Clients vanish at every point, are slow or silent, come by the thousand, or send bombs."""

import base64
import io
import json
import resource
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from msmlp.bench.generator import request_bytes
from msmlp.bench.images import form_bytes
from msmlp.service.grpc.messages import ModelInferRequest
from tests.chaos.conftest import Serve
from tests.chaos.harness import SHORT, Target, at_length
from tests.chaos.load import BOUNDED, QUERY
from tests.e2e.test_json_bombs import BODIES, FORMS, bomb
from tests.fakes import PATIENCE_SECONDS
from tests.servers import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

LEFT = 'msmlp_requests_total{.*status="499".*}'
LATE = grpc.StatusCode.DEADLINE_EXCEEDED
EVERY = 1 if BOUNDED else 61
"""Bytes between two points at which clients vanish."""
OPTIONS = (*SHORT, "--grpc-port", "0")
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\x04\x00\x00\x00\x00\x00"


@pytest.fixture
def target(serve: Serve) -> Target:
    return serve(*OPTIONS)


def requests(target: Target) -> dict[str, bytes]:
    """Whole requests of every kind."""
    file = min((each.file for each in target.known), key=len)
    pixels = bytes(32 * 32 * 3)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(pixels)}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    form, kind = form_bytes([file] * 3)
    url, text = target.url, base64.b64encode(file).decode()
    return {
        "file": request_bytes(url, f"/classify{QUERY}", file, "image/png"),
        "form": request_bytes(url, "/classify", form, kind),
        "stream": request_bytes(url, "/classify?stream=true&min_exit=3", form, kind),
        "json": request_bytes(url, "/classify", json.dumps({"images": [text]}).encode(), "application/json"),
        "tensor": request_bytes(url, "/v2/models/msmlp/infer", head + pixels, "application/octet-stream", **length),
    }


def leave(connection: socket.socket, *, rudely: bool) -> None:
    """Close it; `rudely` resets it."""
    if rudely:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def vanish(target: Target, request: bytes, sent: int, read: int) -> None:
    """Send so many bytes of a request, read so many of its answer, and leave, rudely every other time."""
    connection = socket.create_connection(target.address, timeout=PATIENCE_SECONDS)
    connection.sendall(request[:sent])
    while read > 0:
        found = connection.recv(read)
        assert found, "the service left first"
        read -= len(found)
    leave(connection, rudely=bool(sent % 2))


@pytest.mark.parametrize("kind", ["file", "stream", *at_length("form", "json", "tensor")])
def test_vanishing_at_every_point_of_a_request(target: Target, kind: str) -> None:
    request, before = requests(target)[kind], target.served.metric(LEFT)
    with target.ordeal(live=True):
        for sent in range(0, len(request) + 1, EVERY):
            vanish(target, request, sent, 0)
    assert target.served.metric(LEFT) > before, "the service had begun with some"


@pytest.mark.parametrize("kind", ["stream", *at_length("file")])
def test_vanishing_at_every_point_of_an_answer(target: Target, kind: str) -> None:
    request = requests(target)[kind]
    with target.ordeal(live=True):
        for read in range(1, 700, EVERY):
            vanish(target, request, len(request), read)


def test_vanishing_over_grpc(target: Target) -> None:
    call = ModelInferRequest(
        model_name="msmlp", inputs=[{"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3]}]
    )
    call.raw_input_contents.append(bytes(32 * 32 * 3))
    content = call.SerializeToString()
    before = over_grpc(target)
    with target.ordeal(live=True):
        for number in range(400 if BOUNDED else 20):
            with grpc.insecure_channel(target.served.grpc) as channel:
                if number % 2:
                    asked = channel.unary_unary(INFER).future(content, timeout=PATIENCE_SECONDS)
                else:
                    asked = channel.stream_stream(STREAM)(iter([content] * 3), timeout=PATIENCE_SECONDS)
                time.sleep(0.002 * (number % 5))
                asked.cancel()
    assert over_grpc(target) > before, "some came so far"


def over_grpc(target: Target) -> float:
    """How many calls have ended."""
    return target.served.metric('msmlp_requests_total{.*route="grpc/.*}')


def slow(target: Target, first: bytes, drip: bytes) -> socket.socket:
    connection = socket.create_connection(target.address, timeout=PATIENCE_SECONDS)
    connection.sendall(first)
    connection.settimeout(0)

    def go_on() -> None:
        with suppress(OSError):
            for _ in range(60):
                time.sleep(0.1)
                connection.sendall(drip)

    if drip:
        threading.Thread(target=go_on, name="chaos-drip").start()
    return connection


def is_closed(connection: socket.socket) -> bool:
    """By the other side; what it said before is thrown away."""
    try:
        while connection.recv(2**16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


HEAD = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
SLOW = {
    "says nothing": (b"", b""),
    "half a head": (HEAD[:30], b""),
    "drips headers": (HEAD, b"X-a: b\r\n"),
    "half a body": (HEAD + b"Content-Length: 100000\r\n\r\nabc", b""),
    "drips a body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"x"),
    "drips chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "idle after an answer": (b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", b""),
}


def test_slow_and_silent_clients_are_sent_away(target: Target) -> None:
    with target.ordeal(live=True):
        waiting = [slow(target, *how) for how in SLOW.values() for _ in range(3)]
        until = time.monotonic() + PATIENCE_SECONDS
        while waiting and time.monotonic() < until:
            time.sleep(0.1)
            waiting = [each for each in waiting if not is_closed(each) or each.close()]
        assert not waiting


@pytest.mark.chaos
def test_an_answer_that_is_not_read(target: Target) -> None:
    """Of more bytes than the sockets take: the model's document, again and again on one connection."""
    with target.ordeal(live=True):
        connection = socket.create_connection(target.address, timeout=PATIENCE_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        with suppress(OSError):
            for _ in range(2000):
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            try:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            except TimeoutError:
                continue
            except OSError:  # it is cut
                break
            time.sleep(0.1)
        connection.close()
        assert time.monotonic() < until


@pytest.mark.chaos
def test_slow_and_silent_clients_over_grpc(target: Target) -> None:
    """Silent connections and streams keep nobody out; a call whose message does not come is ended."""
    host, _, port = target.served.grpc.rpartition(":")
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(PATIENCE_SECONDS)
        yield from ()

    with target.ordeal(live=True), ExitStack() as opened:
        for first in (b"", PREFACE[:10], PREFACE, PREFACE + b"\0\0\x40\x01\x04\0\0\0\x01"):
            for _ in range(5):
                connection = opened.enter_context(socket.create_connection((host, int(port))))
                connection.sendall(first)
        opened.callback(over.set)
        channel = opened.enter_context(grpc.insecure_channel(target.served.grpc))
        streams = [channel.stream_stream(STREAM)(silence(), timeout=PATIENCE_SECONDS) for _ in range(3)]
        calls = [channel.stream_unary(INFER).future(silence(), timeout=PATIENCE_SECONDS) for _ in range(3)]
        ends = [call.exception() for call in calls]
        assert [(end.code(), "did not arrive" in end.details()) for end in ends] == [(LATE, True)] * 3
        for each in streams:
            each.cancel()


@pytest.mark.parametrize("begin", [b"", b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["silent", "idle"])
def test_a_thousand_idle_connections(target: Target, begin: bytes) -> None:
    number = 1000 if BOUNDED else 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2000)), hard))
    before = target.served.metric("msmlp_timeouts_total")
    with target.ordeal(live=True) as load, ExitStack() as opened:
        for _ in range(number):
            opened.enter_context(socket.create_connection(target.address)).sendall(begin)
        load.wait_for(50)
        # They are sent away while their clients still hold them.
        wait_until(lambda: target.served.metric("msmlp_timeouts_total") - before >= number)


def declared(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and has next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def small_file(mode: str, kind: str, **how: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (5600, 5600)).save(stream, kind, **how)
    return stream.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "png": lambda: small_file("1", "PNG", optimize=True),
    "gif": lambda: small_file("P", "GIF"),
    "jpeg": lambda: small_file("CMYK", "JPEG", progressive=True, quality=1),
    "webp": lambda: small_file("RGBA", "WEBP", lossless=True),
    "declared": lambda: declared(60_000, 60_000),
    "nearly": lambda: declared(5_600, 5_600),
}


def send(target: Target, path: str, content: bytes, kind: str, statuses: list[int]) -> None:
    answer = httpx.post(target.url + path, content=content, headers={"Content-Type": kind}, timeout=PATIENCE_SECONDS)
    statuses.append(answer.status_code)


def send_all(target: Target, bodies: list[tuple[str, bytes, str]]) -> list[int]:
    statuses: list[int] = []
    threads = [threading.Thread(target=send, args=(target, *body, statuses)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == len(bodies)
    return statuses


@pytest.mark.parametrize("kind", ["declared", *at_length(*(kind for kind in PICTURES if kind != "declared"))])
def test_a_decode_bomb(target: Target, kind: str) -> None:
    form, content_type = form_bytes([PICTURES[kind]()] * (20 if BOUNDED else 3))
    with target.ordeal(live=True):
        statuses = send_all(target, [("/classify", form, content_type)] * 2)
        assert set(statuses) <= {200, 413, 422, 429}


@pytest.mark.parametrize("form", [FORMS[0], *at_length(*FORMS[1:])], ids=lambda form: str(form)[:5])
@pytest.mark.parametrize("body", BODIES)
def test_a_json_bomb(target: Target, body: str, form: str) -> None:
    path, text = BODIES[body]
    with target.ordeal(live=True):
        statuses = send_all(target, [(path, bomb(text, form), "application/json")] * 2)
        assert set(statuses) <= {400, 413, 422, 429}


@pytest.mark.chaos
def test_bodies_that_are_held_until_no_memory_is_left_for_others(serve: Serve) -> None:
    """They are ended in favour of those that move."""
    target = serve(*SHORT, "--max-body-bytes", "1000000", "--max-bodies-bytes", "4000000")
    with target.ordeal(), ExitStack() as opened:
        for _ in range(12):
            held = opened.enter_context(socket.create_connection(target.address))
            held.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + bytes(900_000))
        noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "BMP")
        until = time.monotonic() + PATIENCE_SECONDS
        statuses: list[int] = []
        while 200 not in statuses and time.monotonic() < until:
            send(target, "/classify", stream.getvalue(), "image/bmp", statuses)
            time.sleep(0.2)
        assert set(statuses) <= {200, 429}
        assert 200 in statuses
