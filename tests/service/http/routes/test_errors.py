"""Every error a client can provoke, over HTTP, in the one shape there is."""

import base64
import functools
import gzip
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.errors import DeviceError
from msmlp.service.engine.messages import Died
from msmlp.service.errors import STATUS
from tests import reloads
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture, pictures
from tests.servers import Submissions, Told, encoded, fake_backend, fake_service, serving

CHECKED: set[str] = set()
PROVOKED_BY_STATE: set[str] = set()
"""Codes that are no mistake of the caller's."""

JPEG, PNG = {"Content-Type": "image/jpeg"}, {"Content-Type": "image/png"}
HTML = b"<!doctype html><html><body>404 Not Found</body></html>"


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is a problem document, and says nothing of the server's inside."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert set(document) - {"errors"} == {"type", "title", "status", "detail", "code", "request_id"}
    assert (document["status"], document["code"]) == (status, code)
    assert document["title"] == HTTPStatus(status).phrase
    assert isinstance(document["detail"], str)
    assert document["detail"]
    assert document["request_id"] == answer.headers["X-Request-ID"]
    check_discreet(answer.text)
    check_discreet("\n".join(value for name, value in answer.headers.items() if name != "content-type"))
    CHECKED.add(code)
    if status in (429, 503):
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    else:
        assert "Retry-After" not in answer.headers
    return document


def provokes(code: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that must see a problem with this code."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def seen(*args: Any, **kwargs: Any) -> None:
            CHECKED.clear()
            test(*args, **kwargs)
            assert code in CHECKED

        PROVOKED_BY_STATE.add(code)
        return seen

    return mark


def check_discreet(text: str) -> None:
    assert "Traceback" not in text
    assert ".py" not in text
    assert not re.search(r"(?<![\w/:.])/(?:[\w.-]+/)+[\w.-]+", text), "a path of the server"


def black(side: int) -> bytes:
    """Few bytes, whatever the size."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def picture_file(size: int = 32) -> bytes:
    return encoded(np.zeros((size, size, 3), dtype=np.uint8))


def form(*images: bytes, **fields: str) -> dict[str, Any]:
    return {"files": [("images", ("x", image)) for image in images], "data": fields}


PROVOKED: dict[str, tuple[int, str, Callable[[], dict[str, Any]]]] = {
    "no JSON": (400, "malformed_body", lambda: {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    "no base64": (400, "malformed_body", lambda: {"json": {"images": ["?"]}}),
    "no form": (
        400,
        "malformed_body",
        lambda: {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
    ),
    "too many bytes": (413, "body_too_large", lambda: {"content": b"x" * 2_000_001, "headers": PNG}),
    "too many bytes, undeclared": (
        413,
        "body_too_large",
        lambda: {"content": iter([b"x" * 1_500_000] * 2), "headers": PNG},
    ),
    "too many images": (413, "too_many_images", lambda: form(*[picture_file()] * 65)),
    "far too many images": (413, "too_many_images", lambda: form(*[b"x"] * 500)),
    "too many images as JSON": (413, "too_many_images", lambda: {"json": {"images": ["eA=="] * 65}}),
    "100 megapixels": (413, "image_too_large", lambda: {"content": black(10_000), "headers": PNG}),
    "12 megapixels in all": (413, "too_many_pixels", lambda: form(*[black(1000)] * 12)),
    "another type": (
        415,
        "unsupported_media_type",
        lambda: {"content": HTML, "headers": {"Content-Type": "text/html"}},
    ),
    "no type": (422, "undecodable_image", lambda: {"content": b"x"}),
    "no image": (422, "no_images", lambda: {"content": b"", "headers": PNG}),
    "no image in JSON": (422, "no_images", lambda: {"json": {"images": []}}),
    "HTML as PNG": (422, "undecodable_image", lambda: {"content": HTML, "headers": PNG}),
    "a truncated PNG": (422, "undecodable_image", lambda: {"content": picture_file(300)[:200], "headers": PNG}),
    "an empty part": (422, "undecodable_image", lambda: form(b"")),
    "an unknown option": (422, "bad_option", lambda: form(picture_file(), treshold="0.5")),
    "a bad value": (422, "bad_option", lambda: form(picture_file(), thresholds="0.5,1.5")),
    "an option twice": (422, "bad_option", lambda: {**form(picture_file(), top_k="1"), "params": {"top_k": "1"}}),
    "two selectors": (422, "bad_option", lambda: form(picture_file(), policy="fast", thresholds="0,0")),
    "too many thresholds": (422, "bad_option", lambda: form(picture_file(), thresholds="0,0,0")),
    "an exit beyond the last": (422, "bad_option", lambda: form(picture_file(), max_exit="4")),
    "an unknown policy": (422, "bad_option", lambda: form(picture_file(), policy="best")),
    "a data URL that is none": (400, "malformed_body", lambda: {"json": {"images": ["data:image/png,x"]}}),
    "a compressed body": (
        415,
        "unsupported_media_type",
        lambda: {"content": gzip.compress(picture_file()), "headers": {**PNG, "Content-Encoding": "gzip"}},
    ),
    "no operating point that cheap": (422, "bad_option", lambda: form(picture_file(), budget_gflops="1e-9")),
    "no operating point that good": (422, "bad_option", lambda: form(picture_file(), min_accuracy="1")),
    "no exit that cheap": (422, "bad_option", lambda: form(picture_file(), max_gflops="0")),
    "a floor under thresholds": (422, "bad_option", lambda: form(picture_file(), thresholds="0,0", accuracy_floor="0")),
    "a negative deadline": (422, "bad_option", lambda: form(picture_file(), deadline_ms="-1")),
    "neither true nor false": (422, "bad_option", lambda: form(picture_file(), stream="maybe")),
    "a deadline that is over": (504, "expired", lambda: form(picture_file(), picture_file(), deadline_ms="0")),
    "a deadline that is over, streamed": (504, "expired", lambda: form(picture_file(), deadline_ms="0", stream="true")),
    "an option that is null": (
        422,
        "bad_option",
        lambda: {"json": {"images": [base64.b64encode(picture_file()).decode()], "top_k": None}},
    ),
    "an option that is another kind": (
        422,
        "bad_option",
        lambda: {"json": {"images": [base64.b64encode(picture_file()).decode()], "budget_gflops": [1]}},
    ),
    "an unencodable option": (
        400,
        "malformed_body",
        lambda: {"content": b'{"images": ["eA=="], "\\ud800": 1}', "headers": {"Content-Type": "application/json"}},
    ),
}


@pytest.mark.parametrize("what", PROVOKED)
def test_a_mistake_is_a_problem_document(client: httpx.Client, what: str) -> None:
    status, code, request = PROVOKED[what]
    check_problem(client.post("/classify", **request()), status, code)


def test_every_code_of_the_table_is_provoked_here() -> None:
    """A new code of service/errors.py fails here until a test above or below provokes it over HTTP."""
    elsewhere = {"unknown_model", *reloads.CODES}  # tests/.../test_oip.py, tests/e2e/test_reload.py
    known = {code for _, code in STATUS.values()} - elsewhere
    assert known == {code for _, code, _ in PROVOKED.values()} | PROVOKED_BY_STATE


def test_an_option_out_of_range_names_it_and_what_is_allowed(client: httpx.Client) -> None:
    for fields, said in [
        ({"thresholds": "0.5,1.5"}, "thresholds: expected numbers from 0 to 1"),
        ({"min_exit": "9"}, "min_exit: 9 is out of range; expected 1 to 3"),
        ({"policy": "best"}, "policy: 'best' is not an operating point; expected one of "),
        ({"top_k": "0"}, "top_k: expected a whole number from 1 to 1e9"),
    ]:
        assert said in client.post("/classify", **form(picture_file(), **fields)).json()["detail"]


FORM = "multipart/form-data; boundary=b; charset="


def sent_form(charset: str, policy: bytes = b"fast") -> dict[str, Any]:
    """A form that names its character set."""
    image = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + picture_file()
    field = b'\r\n--b\r\nContent-Disposition: form-data; name="policy"\r\n\r\n' + policy
    return {"content": image + field + b"\r\n--b--\r\n", "headers": {"Content-Type": FORM + charset}}


@pytest.mark.parametrize("charset", ["punycode", "idna", '"Punycode"', "utf-7", "nowhere", "x" * 100])
def test_a_form_names_a_character_set_that_is_quickly_read(client: httpx.Client, charset: str) -> None:
    document = check_problem(client.post("/classify", **sent_form(charset)), 415, "unsupported_media_type")
    assert "expected one of utf-8, " in document["detail"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "US-ASCII", "iso-8859-1"])
def test_a_form_may_name_a_character_set_that_is(client: httpx.Client, charset: str) -> None:
    assert client.post("/classify", **sent_form(charset)).json()["operating_point"]["name"] == "fast"


def test_a_form_field_is_short(client: httpx.Client) -> None:
    answer = client.post("/classify", **sent_form("utf-8", b"x" * 4000))
    assert "policy" in check_problem(answer, 422, "bad_option")["detail"]
    answer = client.post("/classify", **sent_form("utf-8", b"x" * 4001))
    assert "more than 4000 bytes" in check_problem(answer, 400, "malformed_body")["detail"]


def test_a_content_type_is_short(client: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b" + ";" * 1000}
    answer = client.post("/classify", content=b"x", headers=headers)
    assert "at most 1000" in check_problem(answer, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/classify"), ("GET", "/livez"), ("BREW", "/nowhere")])
def test_a_query_has_a_bounded_number_of_parameters(client: httpx.Client, method: str, path: str) -> None:
    query = "&".join(f"{number:x}=" for number in range(65))
    answer = client.request(method, f"{path}?{query}", headers=JPEG)
    assert check_problem(answer, 422, "bad_option")["detail"] == "query: more than 64 parameters"
    allowed = client.request(method, f"{path}?{query.rpartition('&')[0]}", headers=JPEG)
    assert "parameters" not in allowed.text


def test_a_truncated_jpeg(client: httpx.Client, cat_photo: bytes) -> None:
    answer = client.post("/classify", content=cat_photo[: len(cat_photo) // 2], headers=JPEG)
    assert "damaged or truncated JPEG image" in check_problem(answer, 422, "undecodable_image")["detail"]


def test_what_is_too_large_is_said_with_the_limit(client: httpx.Client) -> None:
    """Pillow itself warns of 100 megapixels (an error in these tests), so its words are the shorter ones."""
    for content in (black(10_000), picture_file(1001)):
        answer = client.post("/classify", content=content, headers=PNG)
        assert re.search("limit (of|is) 1000000$", answer.json()["detail"])


@pytest.mark.parametrize("way", ["form", "json"])
def test_each_bad_image_of_several_is_named(client: httpx.Client, way: str) -> None:
    images = [picture_file(), HTML, picture_file(), black(10_000), picture_file()]
    request = form(*images)
    if way == "json":
        request = {"json": {"images": [base64.b64encode(image).decode() for image in images]}}
    document = check_problem(client.post("/classify", **request), 422, "undecodable_image")
    assert [(e["index"], e["code"]) for e in document["errors"]] == [(1, "undecodable_image"), (3, "image_too_large")]
    assert all(set(entry) == {"index", "code", "detail"} for entry in document["errors"])
    assert "limit" in document["errors"][1]["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/classify", 405, "method_not_allowed"),
        ("PATCH", "/classify", 405, "method_not_allowed"),
        ("DELETE", "/model", 405, "method_not_allowed"),
        ("OPTIONS", "/classify", 405, "method_not_allowed"),
        ("TRACE", "/metrics", 405, "method_not_allowed"),
        ("POST", "/docs", 405, "method_not_allowed"),
        ("GET", "/livez/", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/nowhere?thresholds=%ff&=&%", 404, "not_found"),
    ],
)
def test_what_is_not_there(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    document = check_problem(answer, status, code)
    assert ("Allow" in answer.headers) == (status == 405)
    assert answer.headers.get("Allow", "") in document["detail"]


@pytest.mark.parametrize(("path", "status"), [("/classify", 405), ("/nowhere", 404)])
def test_a_head_request_has_the_errors_headers_and_no_body(client: httpx.Client, path: str, status: int) -> None:
    answer = client.head(path, headers={"X-Request-ID": "head-1"})
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"] == "head-1"


@pytest.mark.parametrize("query", ["%ff=1", "top_k=%ff", "=", "&&&", "%", "top_k", "a" * 5000 + "=1", "\u00e9=1"])
def test_a_malformed_query_is_a_bad_option_or_none(client: httpx.Client, query: str) -> None:
    answer = client.post(f"/classify?{query}", content=picture_file(), headers=PNG)
    if answer.status_code != 200:
        assert len(check_problem(answer, 422, "bad_option")["detail"]) < 500


@pytest.mark.parametrize("number", [0.0121, "0.0121", " 1.21e-2 "])
def test_numbers_in_json_may_be_text(client: httpx.Client, number: object) -> None:
    """As they are in forms and queries, which many programs copy them from."""
    images = [base64.b64encode(picture_file()).decode()]
    answer = client.post("/classify", json={"images": images, "max_gflops": 1, "budget_gflops": number})
    as_query = client.post("/classify?budget_gflops=0.0121", content=picture_file(), headers=PNG)
    assert answer.json()["operating_point"] == as_query.json()["operating_point"]


@pytest.fixture
def backend() -> FakeBackend:
    return fake_backend(capacity=4)


@pytest.fixture
def small(tiny_weights: Path, backend: FakeBackend) -> Iterator[tuple[httpx.Client, Submissions]]:
    """A server with places for 4 images, on a fake backend."""
    service = fake_service(tiny_weights, lambda: backend, capacity=4)
    submissions = Submissions(service.engine)
    with serving(service) as client:
        yield client, submissions


@provokes("overloaded")
def test_places_are_counted_in_images_for_singles_and_batches_alike(
    small: tuple[httpx.Client, Submissions], backend: FakeBackend
) -> None:
    client, submissions = small
    image = encoded(picture(1.0, size=32))

    def send(*images: bytes) -> httpx.Response:
        return client.post("/classify", **form(*images))

    with ThreadPoolExecutor(4) as pool:
        with backend.gate.held():
            inside = [pool.submit(send, image) for _ in range(3)]
            submissions.wait_for(3)
            document = check_problem(send(image, image), 429, "overloaded")
            assert "3 of 4 images in flight, 2 more requested" in document["detail"]
            inside.append(pool.submit(send, image))
            submissions.wait_for(1)
            check_problem(send(image), 429, "overloaded")
            assert 'msmlp_shed_total{reason="capacity"} 3.0' in client.get("/metrics").text
            assert "msmlp_inflight_images 4.0" in client.get("/metrics").text
        assert [future.result().status_code for future in inside] == [200] * 4
    assert send(image, image, image, image).status_code == 200
    # More than there will ever be places for: to come again would not help.
    check_problem(send(*[image] * 5), 413, "too_many_images")
    assert "msmlp_inflight_images 0.0" in client.get("/metrics").text


@provokes("body_timeout")
def test_a_body_that_does_not_come(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend, body_seconds=0.3)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n")
            connection.sendall(b"Content-Length: 100\r\n\r\nabc")
            answer = response(connection)
        assert "less than 10 KB/s of the body came for 0.3 s" in check_problem(answer, 408, "body_timeout")["detail"]


@provokes("no_memory")
@pytest.mark.parametrize("size", [32, 500], ids=["on the event loop", "in a thread"])
def test_a_picture_for_which_there_is_no_memory_is_not_called_damaged(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        bmp = encoded(np.zeros((size, size, 3), dtype=np.uint8), "BMP")
        with monkeypatch.context() as patch:
            patch.setattr("msmlp.model.preprocess.upright_rgb", _no_memory)
            answer = client.post("/classify", content=bmp)
        check_problem(answer, 503, "no_memory")
        assert int(answer.headers["Retry-After"]) > 0
        assert client.post("/classify", content=bmp).status_code == 200


def _no_memory(*_: object) -> None:
    raise MemoryError


@provokes("unanswered")
def test_an_answer_that_takes_too_long(tiny_weights: Path, backend: FakeBackend) -> None:
    with serving(fake_service(tiny_weights, lambda: backend, request_seconds=0.3)) as client, backend.gate.held():
        answer = client.post("/classify", content=picture_file(), headers=PNG)
        assert "no answer was ready within 0.3 s" in check_problem(answer, 503, "unanswered")["detail"]


def response(connection: socket.socket) -> httpx.Response:
    """The one answer on a connection that is then closed."""
    received = b""
    while more := connection.recv(2**16):
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return httpx.Response(int(status.split()[1]), headers=[line.split(": ", 1) for line in lines], content=body)


def test_a_bad_image_returns_its_permits(small: tuple[httpx.Client, Submissions]) -> None:
    client, _ = small
    for _ in range(3):
        assert client.post("/classify", **form(HTML, HTML, HTML)).status_code == 422
    assert client.post("/classify", **form(*[encoded(picture(1.0, size=32))] * 4)).status_code == 200


@provokes("engine_down")
def test_a_failing_device_fails_the_request_and_not_the_service(
    small: tuple[httpx.Client, Submissions], backend: FakeBackend
) -> None:
    client, _ = small

    def fail(stage: int, pixels: Any) -> None:
        raise DeviceError("CUDA error at /home/someone/kernel.cu:7")

    backend.fail = fail
    document = check_problem(client.post("/classify", **form(encoded(picture(1.0, size=32)))), 503, "engine_down")
    assert "someone" not in json.dumps(document)
    backend.fail = lambda stage, pixels: None
    assert client.post("/classify", **form(*[encoded(picture(1.0, size=32))] * 4)).status_code == 200
    assert client.get("/readyz").status_code == 200


@provokes("starting")
def test_until_the_engine_is_warm(tiny_weights: Path) -> None:
    may_build = threading.Event()

    def build() -> StageBackend:
        assert may_build.wait(PATIENCE_SECONDS)
        return fake_backend()

    service = fake_service(tiny_weights, build)
    with serving(service, wait=False) as client:
        try:
            check_problem(client.post("/classify", **form(picture_file())), 503, "starting")
            check_problem(client.get("/readyz"), 503, "starting")
            assert client.get("/livez").json() == {"live": True}
            assert "msmlp_engine_up 0.0" in client.get("/metrics").text
        finally:
            may_build.set()
        assert service.engine.worker.ready.wait(PATIENCE_SECONDS)
        assert client.get("/readyz").json() == {"ready": True}
        assert "msmlp_engine_up 1.0" in client.get("/metrics").text


@provokes("engine_down")
def test_an_engine_that_could_not_start(tiny_weights: Path) -> None:
    def build() -> StageBackend:
        raise DeviceError("no kernel image in /home/someone/secret.so")

    service = fake_service(tiny_weights, build)
    died = Told(service.engine, Died)
    with serving(service, wait=False) as client:
        died.wait()
        for answer in (
            client.post("/classify", **form(picture_file())),
            client.get("/readyz"),
            client.get("/livez"),
        ):
            document = check_problem(answer, 503, "engine_down")
            assert "secret" not in document["detail"]
        assert "msmlp_engine_up 0.0" in client.get("/metrics").text


@provokes("draining")
def test_while_shutting_down(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        service.draining = True
        check_problem(client.get("/readyz"), 503, "draining")
        assert client.post("/classify", **form(picture_file())).status_code == 200, "as long as somebody sends"
        assert client.get("/livez").json() == {"live": True}


@provokes("unauthorized")
def test_where_keys_are_asked_for(tiny_weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-20-letters-")
    with serving(fake_service(tiny_weights, fake_backend, api_keys_file=file)) as client:
        answer = client.post("/classify", **form(picture_file()))
        assert "authorization: Bearer KEY" in check_problem(answer, 401, "unauthorized")["detail"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@provokes("rate_limited")
def test_where_a_key_has_limits(tiny_weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-20-letters- requests=0.02")
    with serving(fake_service(tiny_weights, fake_backend, api_keys_file=file)) as client:
        sent = form(picture_file()) | {"headers": {"Authorization": "Bearer a-key-of-20-letters-"}}
        assert client.post("/classify", **sent).status_code == 200
        document = check_problem(client.post("/classify", **sent), 429, "rate_limited")
        assert document["detail"] == "this key may have 0.02 requests a second"


@provokes("internal")
def test_a_fault_of_the_servers_own_is_counted_named_and_not_explained(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = fake_service(tiny_weights, fake_backend)

    def broken(*anything: Any) -> None:
        raise ZeroDivisionError("secret at /home/someone/policy.py")

    monkeypatch.setattr("msmlp.service.inference.answer_document", broken)
    with serving(service) as client:
        answer = client.post("/classify", **form(picture_file()), headers={"X-Request-ID": "mine-7"})
        document = check_problem(answer, 500, "internal")
        assert document["detail"] == "the server failed"
        assert document["request_id"] == "mine-7"
        assert 'msmlp_requests_total{route="/classify",status="500"} 1.0' in client.get("/metrics").text
        monkeypatch.undo()
        assert client.post("/classify", **form(encoded(picture(1.0, size=32)))).status_code == 200


def test_a_weights_folder_damaged_while_serving_changes_nothing(tiny_weights: Path, tmp_path: Path) -> None:
    """Everything was read and checked at the start."""
    import shutil

    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    with serving(fake_service(folder, fake_backend)) as client:
        for path in folder.iterdir():
            path.write_bytes(b"damaged")
        assert client.post("/classify", **form(encoded(picture(1.0, size=32)))).status_code == 200
        assert client.get("/model").status_code == 200


def test_pictures_of_the_fake_backend_reach_it_unchanged(small: tuple[httpx.Client, Submissions]) -> None:
    client, _ = small
    images = [encoded(p) for p in (picture(0.2, 0.2, 0.6, label=7, size=32), picture(1.0, label=3, size=32))]
    results = client.post("/classify", **form(*images), params={"thresholds": "0.5,0.5"}).json()["results"]
    assert [(r["class_id"], r["exit"]) for r in results] == [(7, 3), (3, 1)]
    assert pictures(2, 1.0, size=32).shape == (2, 32, 32, 3)
