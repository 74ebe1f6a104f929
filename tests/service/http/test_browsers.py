"""What browsers are told: over real sockets, on every way that an answer takes."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.certificates import issue, secured
from tests.fakes import PATIENCE_SECONDS, picture
from tests.servers import encoded, fake_backend, fake_service, knock, serving, wait_until
from tests.service.http.test_door import read_answer

SHOP, OTHER = "https://shop.example", "https://other.example"
READABLE = "X-Request-ID, Server-Timing, Retry-After, Inference-Header-Content-Length"
HEADERS = "authorization, content-type, inference-header-content-length, x-request-id"
IMAGE = encoded(picture(1.0, size=32))
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": HEADERS}


@pytest.fixture(scope="module")
def listed(tiny_weights: Path) -> Iterator[httpx.Client]:
    service = fake_service(tiny_weights, fake_backend, cors_origins=f"{SHOP},http://127.0.0.1:3000")
    with serving(service) as client:
        yield client


@pytest.fixture(scope="module")
def any_origin(tiny_weights: Path) -> Iterator[httpx.Client]:
    with serving(fake_service(tiny_weights, fake_backend, cors_origins="*")) as client:
        yield client


def told(answer: httpx.Response) -> dict[str, str]:
    """Its CORS headers."""
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def answers(client: httpx.Client, origin: str) -> list[httpx.Response]:
    """One of each way: a route of FastAPI's, the short way, an error there, a stream, what no route has."""
    headers = {"Origin": origin}
    return [
        client.get("/model", headers=headers),
        client.post("/classify", content=IMAGE, headers=headers),
        client.post("/classify?top_k=none", content=IMAGE, headers=headers),
        client.post("/classify?stream=true", content=IMAGE, headers=headers),
        client.post("/v2/models/msmlp/infer", content=b"{", headers=headers),
        client.get("/nothing", headers=headers),
    ]


def test_pages_of_a_listed_origin_may_read_every_answer_and_its_id(listed: httpx.Client) -> None:
    for answer in answers(listed, SHOP):
        assert told(answer) == {"access-control-allow-origin": SHOP, "access-control-expose-headers": READABLE}
        assert answer.headers["Vary"] == "Origin"
    assert told(listed.get("/model", headers={"Origin": "http://127.0.0.1:3000"}))


@pytest.mark.parametrize("origin", [OTHER, "https://shop.example.evil.example", "null", "https://SHOP.example"])
def test_pages_of_others_may_not(listed: httpx.Client, origin: str) -> None:
    for answer in answers(listed, origin):
        assert told(answer) == {}
        assert answer.headers["Vary"] == "Origin", "or a cache would give one origin's answer to another"


def test_with_a_star_all_may(any_origin: httpx.Client) -> None:
    for answer in answers(any_origin, OTHER):
        assert told(answer)["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in told(answer)
    assert told(any_origin.get("/model")) == {}


def test_a_browser_that_asks_first_is_answered_without_a_key(tiny_weights: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("abcdefghijklmnopqrst\n")
    service = fake_service(tiny_weights, fake_backend, cors_origins=SHOP, api_keys_file=keys)
    with serving(service) as client:
        asked = client.options("/classify", headers={"Origin": SHOP, **ASKED})
        assert asked.status_code == 200
        assert asked.headers.get_list("Access-Control-Allow-Origin") == [SHOP]
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
        assert asked.headers["X-Request-ID"]
        refused = client.post("/classify", content=IMAGE, headers={"Origin": SHOP})
        assert (refused.status_code, told(refused)["access-control-allow-origin"]) == (401, SHOP)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": OTHER, **ASKED}, {"Origin": SHOP, **ASKED, "Access-Control-Request-Headers": "x-other"}],
    ids=["origin", "header"],
)
def test_a_browser_that_asks_for_what_is_not_allowed_is_told_so(listed: httpx.Client, headers: dict[str, str]) -> None:
    assert listed.options("/classify", headers=headers).status_code == 400


def test_under_overload_refusals_before_the_body_can_be_read_too(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(
        tiny_weights, lambda: backend, cors_origins=SHOP, max_bodies_bytes=2_000, max_body_bytes=2_000
    )
    with serving(service) as client, backend.gate.held(), knock(client, content=IMAGE + bytes(1_500 - len(IMAGE))):
        wait_until(lambda: service.body_budget.free < 1_000)
        refused = client.post("/classify", content=bytes(1_500), headers={"Origin": SHOP})
        assert (refused.status_code, told(refused)["access-control-allow-origin"]) == (429, SHOP)
        assert refused.headers["X-Content-Type-Options"] == "nosniff"
        backend.gate.open()


def test_without_origins_no_page_but_our_own_is_told_anything(own_client: httpx.Client) -> None:
    for answer in answers(own_client, SHOP):
        assert told(answer) == {}
        assert "Vary" not in answer.headers
    assert own_client.options("/classify", headers={"Origin": SHOP, **ASKED}).status_code == 405


def test_no_answer_is_taken_for_what_it_does_not_say_it_is(own_client: httpx.Client) -> None:
    for answer in [*answers(own_client, SHOP), *(own_client.get(path) for path in ("/", "/docs", "/metrics"))]:
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"], answer.request.url
        assert "Strict-Transport-Security" not in answer.headers


@pytest.mark.parametrize("upgrade", ["", "Upgrade: h2c\r\nConnection: Upgrade\r\n"], ids=["httptools", "h11"])
def test_over_tls_refusals_of_what_is_no_request_ask_for_it_too(
    tiny_weights: Path, tmp_path: Path, upgrade: str
) -> None:
    service = fake_service(tiny_weights, fake_backend, **issue(tmp_path).settings)
    wrong = f"POST /classify HTTP/1.1\r\nHost: x\r\n{upgrade}Transfer-Encoding: gzip\r\n\r\n".encode()
    with serving(service) as client:
        address = client.base_url.host, client.base_url.port
        with secured(socket.create_connection(address, PATIENCE_SECONDS)) as connection:
            connection.sendall(wrong)
            answer = read_answer(connection)
        assert (answer.status_code, answer.headers["Strict-Transport-Security"]) == (501, "max-age=31536000")


def test_pages_keep_to_themselves(own_client: httpx.Client) -> None:
    for path in ("/", "/ui/icon.svg"):
        headers = own_client.get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert (headers["X-Frame-Options"], headers["Referrer-Policy"]) == ("DENY", "no-referrer")
        assert headers["Permissions-Policy"] == "camera=(), geolocation=(), microphone=()"
