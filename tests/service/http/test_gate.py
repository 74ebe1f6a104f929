"""Keys over HTTP, at real servers: what needs one, how it is refused, limits, and files that change."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.fakes import PATIENCE_SECONDS, picture
from tests.processes import LAYOUTS, Served, msmlp_serve
from tests.servers import encoded, fake_backend, fake_service, serving, wait_until
from tests.service.http.routes.test_errors import check_problem
from tests.service.http.test_door import head, read_answer

KEY, OTHER, ADMIN, WRONG = "a-key-of-20-letters-", "another-key-of-them+", "a-key-of-the-admin's"[:-2], 20 * "x"
IMAGE = encoded(picture(1.0, size=32))
PNG = {"Content-Type": "image/png"}
V2 = "/v2/models/msmlp/infer"

FREE = ["/", "/ui/app.js", "/docs", "/openapi.json", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"]
GUARDED = ["/model", "/metrics", "/v2", "/v2/models/msmlp", "/v2/models/msmlp/ready", "/v2/models/stats", "/nowhere"]
NOT_ADMIN = ["/administrator", "//admin/reload", "/Admin/reload", "/x/%2e%2e/admin/reload", "/admin;reload"]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def write(path: Path, *lines: str) -> Path:
    """As a tool does that replaces files."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(path)
    return path


@contextmanager
def guarded(weights: Path, folder: Path, *lines: str, **settings: Any) -> Iterator[httpx.Client]:
    """A server in this process, on a fake backend, with these keys."""
    file = write(folder / "keys", *lines)
    with serving(fake_service(weights, fake_backend, api_keys_file=file, **settings)) as client:
        yield client


@pytest.fixture(scope="module")
def client(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("keys")
    admin = write(folder / "admins", ADMIN)
    with guarded(tiny_weights, folder, f"{KEY} name=shop", f"{OTHER}", admin_keys_file=admin) as client:
        yield client


@pytest.fixture(params=[{}, {"Connection": "Upgrade", "Upgrade": "h2c"}], ids=["httptools", "h11"])
def parser(request: pytest.FixtureRequest) -> dict[str, str]:
    """Headers that choose it."""
    chosen: dict[str, str] = request.param
    return chosen


def check_refused(answer: httpx.Response, path: str) -> None:
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    if path.startswith("/v2"):
        assert answer.status_code == 401
        assert answer.json() == {"error": "no valid key; expected authorization: Bearer KEY"}
    else:
        check_problem(answer, 401, "unauthorized")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_and_what_is_the_same_everywhere_need_no_key(
    client: httpx.Client, method: str, parser: dict[str, str]
) -> None:
    for path in FREE:
        for key in ("", WRONG, KEY):
            assert client.request(method, path, headers={**parser, **bearer(key)}).status_code == 200, path


def test_all_else_needs_one(client: httpx.Client, parser: dict[str, str]) -> None:
    for path in GUARDED:
        for key in ("", WRONG, ADMIN):
            check_refused(client.get(path, headers={**parser, **bearer(key)}), path)
            assert client.head(path, headers={**parser, **bearer(key)}).status_code == 401
        for key in (KEY, OTHER):
            status = 404 if path == "/nowhere" else 200
            assert client.get(path, headers={**parser, **bearer(key)}).status_code == status, path


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/classify", V2])
def test_whatever_the_method(client: httpx.Client, method: str, path: str, parser: dict[str, str]) -> None:
    check_refused(client.request(method, path, headers=parser, content=b"x"), path)


def test_requests_to_classify(client: httpx.Client, parser: dict[str, str]) -> None:
    for verb in ("POST", "PUT"):
        for key, status in {"": 401, WRONG: 401, ADMIN: 401, KEY: 200, OTHER: 200}.items():
            headers = {**PNG, **parser, **bearer(key)}
            assert client.request(verb, "/classify", content=IMAGE, headers=headers).status_code == status
    lines = client.post("/classify?stream=true", content=IMAGE, headers={**PNG, **parser, **bearer(KEY)}).text
    assert '"final":true' in lines


@pytest.mark.parametrize("framing", [f"Content-Length: {2**20}", "Transfer-Encoding: chunked"])
def test_the_body_is_not_waited_for_and_the_connection_is_kept(client: httpx.Client, framing: str) -> None:
    address = client.base_url.host, client.base_url.port or 80
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(head("/classify", framing, f"Authorization: Bearer {WRONG}"))
        check_problem(read_answer(connection), 401, "unauthorized")  # nothing of the body was sent
        body = bytes(2**20) if "Length" in framing else b"%x\r\n%b\r\n0\r\n\r\n" % (2**20, bytes(2**20))
        connection.sendall(body + head("/classify", f"Content-Length: {len(IMAGE)}", f"Authorization: Bearer {KEY}"))
        connection.sendall(IMAGE)
        assert read_answer(connection).status_code == 200


def test_each_of_several_pipelined_requests_needs_its_own_key(client: httpx.Client) -> None:
    address = client.base_url.host, client.base_url.port or 80
    wanted = {KEY: 200, WRONG: 401, OTHER: 200, "": 401}
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
        for key in wanted:
            connection.sendall(head("/model", f"Authorization: Bearer {key}", method="HEAD"))
        received = b""
        while received.count(b"HTTP/1.1") < len(wanted):
            received += connection.recv(2**16)
    assert [int(part[1:4]) for part in received.split(b"HTTP/1.1")[1:]] == list(wanted.values())


def test_admin_is_opened_by_its_own_keys_only(client: httpx.Client, parser: dict[str, str]) -> None:
    for path in ("/admin", "/admin/", "/admin/anything", "/%61dmin/anything"):
        for method in ("GET", "POST", "HEAD", "DELETE"):
            for key in ("", WRONG, KEY, OTHER):
                answer = client.request(method, path, headers={**parser, **bearer(key)})
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert client.request(method, path, headers={**parser, **bearer(ADMIN)}).status_code in (404, 405)


@pytest.mark.parametrize("keys", [True, False], ids=["with keys", "without"])
def test_without_a_file_of_its_own_there_is_no_admin(
    tiny_weights: Path, tmp_path: Path, keys: bool, parser: dict[str, str]
) -> None:
    file = write(tmp_path / "keys", KEY) if keys else None
    with serving(fake_service(tiny_weights, fake_backend, api_keys_file=file)) as client:
        for path in ("/admin", "/admin/reload", "/admin/"):
            for method in ("GET", "POST"):
                for key in ("", KEY):
                    answer = client.request(method, path, headers={**parser, **bearer(key)})
                    assert check_problem(answer, 404, "not_found")["detail"] == "no such path"


def test_what_looks_like_admin_is_not(client: httpx.Client, parser: dict[str, str]) -> None:
    """They lead nowhere: a key of requests finds no path, one of /admin is none."""
    for path in NOT_ADMIN:
        url = f"{client.base_url}".rstrip("/") + path
        assert client.get(url, headers={**parser, **bearer(KEY)}).status_code == 404, path
        assert client.get(url, headers={**parser, **bearer(ADMIN)}).status_code == 401, path


def test_admin_keys_alone_close_nothing_else(tiny_weights: Path, tmp_path: Path) -> None:
    admin = write(tmp_path / "admins", ADMIN)
    with serving(fake_service(tiny_weights, fake_backend, admin_keys_file=admin)) as client:
        assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.post("/admin/anything").status_code == 401


def test_metrics_may_be_open(tiny_weights: Path, tmp_path: Path) -> None:
    with guarded(tiny_weights, tmp_path, KEY, metrics_open=True) as client:
        assert client.get("/metrics").status_code == 200
        check_refused(client.get("/model"), "/model")


def test_a_file_without_keys_closes_the_service(tiny_weights: Path, tmp_path: Path) -> None:
    with guarded(tiny_weights, tmp_path) as client:
        check_refused(client.get("/model", headers=bearer(KEY)), "/model")
        assert client.get("/readyz").status_code == 200


# Limits. They are so low that no time passes while a test runs, by their measure.


def test_a_limit_on_requests_counts_every_route_once(
    tiny_weights: Path, tmp_path: Path, parser: dict[str, str]
) -> None:
    with guarded(tiny_weights, tmp_path, f"{KEY} requests=0.0001", OTHER) as client:
        headers = {**PNG, **parser}
        for path in FREE:
            assert client.get(path, headers={**headers, **bearer(KEY)}).status_code == 200  # does not count
        assert client.post("/classify", content=IMAGE, headers={**headers, **bearer(KEY)}).status_code == 200
        for path, method in (("/classify", "POST"), ("/model", "GET"), (V2, "POST")):
            answer = client.request(method, path, headers={**headers, **bearer(KEY)}, content=b"x")
            assert 9000 < int(answer.headers["Retry-After"]) <= 10_000
            assert answer.status_code == 429
            assert "this key may have 0.0001 requests a second" in answer.text
            assert "rate_limited" in answer.text or path == V2
        assert client.post("/classify", content=IMAGE, headers={**headers, **bearer(OTHER)}).status_code == 200
        metrics = client.get("/metrics", headers=bearer(OTHER)).text
        assert 'msmlp_shed_total{reason="key"} 3.0' in metrics
        assert 'msmlp_requests_total{route="/classify",status="429"} 1.0' in metrics


PIXELS = {
    "plain": (IMAGE, 1024),
    "PNG": (encoded(np.zeros((30, 20, 3), np.uint8)), 600),
    "a large PNG": (encoded(np.zeros((300, 200, 3), np.uint8)), 60_000),
    "a JPEG that is decoded at a reduced scale": (encoded(np.zeros((600, 500, 3), np.uint8), "JPEG"), 300_000),
}


@pytest.mark.parametrize("what", PIXELS)
def test_pixels_are_width_times_height_of_all_images(tiny_weights: Path, tmp_path: Path, what: str) -> None:
    file, pixels = PIXELS[what]
    for number in (1, 2):
        with guarded(tiny_weights, tmp_path, f"{KEY} pixels=1") as client:
            files = [("images", file)] * number
            assert client.post("/classify", files=files, headers=bearer(KEY)).status_code == 200
            answer = client.post("/classify", files=files, headers=bearer(KEY))
            assert answer.json()["code"] == "rate_limited"
            assert number * pixels - 200 < int(answer.headers["Retry-After"]) < number * pixels


def test_pixels_of_tensors_count_and_what_is_not_decoded_does_not(tiny_weights: Path, tmp_path: Path) -> None:
    with guarded(tiny_weights, tmp_path, f"{KEY} pixels=1", max_request_pixels=10_000) as client:
        bad = client.post("/classify", content=b"no picture", headers={**PNG, **bearer(KEY)})
        assert bad.status_code == 422
        large = client.post("/classify", content=PIXELS["a large PNG"][0], headers={**PNG, **bearer(KEY)})
        assert large.status_code == 413
        pixels = {"name": "pixels", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": [0] * 6144}
        assert client.post(V2, json={"inputs": [pixels]}, headers=bearer(KEY)).status_code == 200
        answer = client.post(V2, json={"inputs": [pixels]}, headers=bearer(KEY))
        assert answer.status_code == 429
        assert 1800 < int(answer.headers["Retry-After"]) < 2048


# Real processes, several of them.


@pytest.fixture(scope="module", params=LAYOUTS)
def doors(
    request: pytest.FixtureRequest, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Path]]:
    """A service, and its file of keys."""
    file = write(tmp_path_factory.mktemp("keys") / "keys", KEY)
    options = ("--api-keys-file", str(file), "--metrics-open")
    with msmlp_serve(tiny_weights, *request.param, *options) as served:
        served.wait_until_ready(int(request.param[1]))
        yield served, file


@contextmanager
def fresh_connections(url: str, number: int = 12) -> Iterator[list[httpx.Client]]:
    """Enough for every front end."""
    clients = [httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) for _ in range(number)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def statuses(served: Served, key: str) -> set[int]:
    """What a key gets at every front end."""
    with fresh_connections(served.url) as clients:
        return {client.get("/model", headers=bearer(key)).status_code for client in clients}


def test_a_changed_file_is_read_again_by_all(doors: tuple[Served, Path]) -> None:
    served, file = doors
    write(file, KEY)
    wait_until(lambda: statuses(served, KEY) == {200})
    assert statuses(served, OTHER) == {401}
    write(file, OTHER)
    wait_until(lambda: statuses(served, OTHER) == {200})
    assert statuses(served, KEY) == {401}
    write(file, "short")
    served.wait_for("line 1: a key of 5 characters; expected 16 to 1024; the keys that were read before stay valid")
    assert statuses(served, OTHER) == {200}
    write(file, KEY, OTHER)
    wait_until(lambda: statuses(served, KEY) == {200})


def limited(doors: tuple[Served, Path], key: str, limits: str) -> Served:
    """The service, once such a new key is valid."""
    served, file = doors
    probe = f"{key}-probe"
    write(file, f"{key} {limits}", probe)
    wait_until(lambda: statuses(served, probe) == {200})
    return served


def test_one_connection_reaches_the_whole_limit(doors: tuple[Served, Path]) -> None:
    served = limited(doors, "one-connection-is-enough", "requests=40")
    with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
        for _ in range(40):
            assert client.get("/model", headers=bearer("one-connection-is-enough")).status_code == 200


def test_the_limit_is_that_of_all_front_ends_together(doors: tuple[Served, Path]) -> None:
    key = "many-connections-are-no-more"
    served = limited(doors, key, "requests=0.0001")
    with fresh_connections(served.url) as clients:
        got = [client.get("/model", headers=bearer(key)).status_code for client in clients]
    assert sorted(got) == [200] + 11 * [429]
    assert served.metric("msmlp_shed_total") >= 11


def test_a_front_end_that_is_replaced_knows_new_keys_and_what_was_used_up(tiny_weights: Path, tmp_path: Path) -> None:
    key = "used-up-by-one-request"
    file = write(tmp_path / "keys", KEY)
    options = ("--frontends", "1", "--engine", "inline", "--api-keys-file", str(file), "--metrics-open")
    with msmlp_serve(tiny_weights, *options) as served:
        served.wait_until_ready()
        write(file, f"{key} requests=0.0001", OTHER)
        wait_until(lambda: statuses(served, OTHER) == {200})
        assert httpx.get(f"{served.url}/model", headers=bearer(key)).status_code == 200
        # The new one starts with what the supervisor has, not with what the file says now.
        write(file, "short")
        served.wait_for("a key of 5 characters")
        first = int(served.wait_for(r"Started server process \[(\d+)\]")[1])
        os.kill(first, signal.SIGKILL)
        served.wait_for("front end 0 died")
        served.wait_for(r"(?s)died.*ready: ")
        assert statuses(served, OTHER) == {200}
        assert statuses(served, KEY) == {401}
        assert httpx.get(f"{served.url}/model", headers=bearer(key)).status_code == 429
