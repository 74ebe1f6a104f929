import gc
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

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
    before = resident()
    for _ in range(400):
        leave()
    assert resident() < before + 30


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024
