import ctypes
import gc
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from msmlp.service.memory import resident_bytes
from msmlp.service.telemetry.record import RequestRecord

IMAGE = {"Content-Type": "image/png"}


@pytest.mark.parametrize("given", ["a", "req-7.of_today", "A" * 64, "0" * 32])
def test_a_sane_request_id_is_kept(client: httpx.Client, given: str) -> None:
    for answer in (
        client.get("/livez", headers={"X-Request-ID": given}),
        client.get("/nowhere", headers={"X-Request-ID": given}),
        client.post("/classify", content=b"x", headers={**IMAGE, "X-Request-ID": given}),
    ):
        assert answer.headers["X-Request-ID"] == given
        if answer.status_code != 200:
            assert answer.json()["request_id"] == given


@pytest.mark.parametrize(
    "given",
    [b"", b"A" * 65, b"a b", b"<script>", b'"', b"a/b", b"caf\xe9", b"\xff\xfe", b"a,b", b"a\tb", b"%0d%0aX: y"],
)
def test_any_other_is_replaced(client: httpx.Client, given: bytes) -> None:
    answer = client.get("/nowhere", headers=[(b"X-Request-ID", given)])
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_every_request_without_one_gets_its_own(client: httpx.Client) -> None:
    assert len({client.get("/livez").headers["X-Request-ID"] for _ in range(5)}) == 5


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what others have freed would hide what is held
    gc.disable()
    yield
    gc.enable()


def test_what_a_request_held_is_freed_with_its_answer(
    own_client: httpx.Client, digit_files: list[bytes], no_collections: None
) -> None:
    """Under overload thousands of requests wait, and collections then take longer than the requests."""
    for content in (b"x", digit_files[0]):
        for _ in range(5):
            own_client.post("/classify", content=content, headers={**IMAGE, "X-Request-ID": "held"})
    own_client.get("/metrics")  # which wait for some records to come together
    own_client.get("/livez")
    records = [each for each in gc.get_objects() if isinstance(each, RequestRecord)]
    assert not [each for each in records if each.request_id == "held"]


@pytest.mark.parametrize("upgrade", ["", "Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["httptools", "h11"])
def test_what_was_read_is_freed_when_its_client_leaves(
    own_client: httpx.Client, no_collections: None, upgrade: str
) -> None:
    """Collections are rare: what was read last would fill the memory."""
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{upgrade}Content-Length: 1999999\r\n\r\n"
    address = own_client.base_url.host, own_client.base_url.port or 80

    def leave() -> None:
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode() + bytes(200_000))
            own_client.get("/livez")

    leave()
    before = resident_bytes()
    for _ in range(400):
        leave()
    assert resident_bytes() < before + 30 * 2**20


FILLING = bytes(1_500_000)
BAD_FORM = b'--b\r\nContent-Disposition: form-data; nome="p"\r\n\r\n' + FILLING + b"\r\n--b--\r\n"
BAD_PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + FILLING + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/classify", "image/jpeg", b"\xff\xd8\xff" + FILLING, 422),
        ("/classify?stream=true", "image/jpeg", b"\xff\xd8\xff" + FILLING, 422),
        ("/classify", "multipart/form-data; boundary=b", BAD_FORM, 400),
        ("/classify", "multipart/form-data; boundary=b", BAD_PART, 422),
        ("/classify", "application/json", b'{"images": ["' + b"A" * 1_500_000 + b'"]}', 422),
        ("/v2/models/msmlp/infer", "application/json", b'{"inputs": [' + b" " * 1_500_000, 400),
    ],
)
def test_what_a_request_that_failed_held_is_freed_with_its_answer(
    own_client: httpx.Client, no_collections: None, path: str, kind: str, body: bytes, status: int
) -> None:
    """Errors refer to frames, and frames through futures to errors."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def fail() -> None:
        with socket.create_connection((own_client.base_url.host, own_client.base_url.port or 80)) as connection:
            connection.sendall(head + body)
            assert connection.recv(100).startswith(f"HTTP/1.1 {status}".encode())

    for _ in range(5):
        fail()
    before = resident_bytes()
    for _ in range(40):
        fail()
    assert resident_bytes() < before + 30 * 2**20
