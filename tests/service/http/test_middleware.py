import re

import httpx
import pytest

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
