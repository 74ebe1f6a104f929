"""`msmlp.Client` and `msmlp.AsyncClient`: every test runs over both, against real sockets and no real waiting."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msmlp
from msmlp.client.transport import FIRST_WAIT
from msmlp.model.errors import CallerError
from tests.msmlp.scripted import ANSWER, DROPPED, SILENT, TRICKLE, Reply, refusal, scripted

LINE = {"request_id": "theirs", "index": 0, "reason": "goes_on", "final": False}


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)

    def clock(self) -> float:
        return self.now


class Driver:
    """Either client by one synchronous interface: a new client for each call, on a clock of its own."""

    def __init__(self, kind: str) -> None:
        self.sync, self.time = kind == "sync", Time()

    def __call__(self, url: str, method: str, *given: Any, **options: Any) -> Any:
        """The result of a method; of a stream, the list of its lines."""
        settings = {name: options.pop(name) for name in ("timeout", "retries", "api_key") if name in options}
        if self.sync:
            with msmlp.Client(url, sleep=self.time.sleep, clock=self.time.clock, **settings) as client:
                result = getattr(client, method)(*given, **options)
                return list(result) if method == "stream" else result
        return asyncio.run(self._awaited(url, method, given, options, settings))

    async def _awaited(self, url: str, method: str, given: Any, options: Any, settings: Any) -> Any:
        async with msmlp.AsyncClient(url, sleep=self.time.asleep, clock=self.time.clock, **settings) as client:
            result = getattr(client, method)(*given, **options)
            return [line async for line in result] if method == "stream" else await result

    def fails(self, url: str, method: str, *given: Any, **options: Any) -> msmlp.ServiceError:
        """The error of a call that must fail."""
        with pytest.raises(msmlp.ServiceError) as caught:
            self(url, method, *given, **options)
        return caught.value


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


# --- a real service ----------------------------------------------------------------------------------------------


def test_a_service_is_asked(ask: Driver, url: str, model: msmlp.Model, digits: Any, digit_files: list[bytes]) -> None:
    answer = ask(url, "classify", digits.test[:4], policy="fast", top_k=2, request_id="mine")
    assert [result.class_id for result in answer.results] == [
        result.class_id for result in model(digit_files[:4], policy="fast").results
    ]
    assert (answer.request_id, answer.operating_point.name, answer.operating_point.source) == (
        "mine",
        "fast",
        "request",
    )
    assert len(answer.results[0].top_k) == 2
    assert ask(url, "model")["name"] == "tiny-digits"
    assert ask(url, "ready") is True


def test_a_pillow_image_arrives_as_it_is(ask: Driver, url: str, cat_photo: bytes, digits: Any) -> None:
    image = Image.fromarray(digits.test[5])
    assert ask(url, "classify", image).results[0].top_k == ask(url, "classify", digits.test[5]).results[0].top_k


def test_a_stream_comes_line_by_line(ask: Driver, url: str, digit_files: list[bytes]) -> None:
    lines = ask(url, "stream", digit_files[:3], thresholds=(1, 1))
    assert [line.index for line in lines if line.final] == [0, 1, 2]
    assert sum(line.reason == "goes_on" for line in lines) == 6


def test_a_stream_shows_its_first_line_before_its_last_exists(url: str, digit_files: list[bytes]) -> None:
    async def first() -> msmlp.StreamLine:
        async with msmlp.AsyncClient(url) as client:
            stream = client.stream(digit_files[:1], thresholds=[1, 1])
            line = await anext(stream)
            await stream.aclose()
            return line

    with msmlp.Client(url) as client:
        stream = client.stream(digit_files[:1], thresholds=[1, 1])
        lines = [next(stream), asyncio.run(first())]
    assert [(line.final, line.reason, line.exit) for line in lines] == [(False, "goes_on", 1)] * 2


def test_errors_have_all_the_service_says(ask: Driver, url: str, digit_files: list[bytes]) -> None:
    error = ask.fails(url, "classify", [digit_files[0], b"no image"], request_id="mine")
    assert (error.status, error.code, error.request_id) == (422, "undecodable_image", "mine")
    assert error.errors == [{"index": 1, "code": "undecodable_image", "detail": error.detail}]
    assert error.retry_after is None
    assert str(error) == error.detail
    too_many = ask.fails(url, "stream", digit_files[:41])
    assert (too_many.status, too_many.code) == (413, "too_many_images")
    assert "at most 40 are allowed" in too_many.detail
    assert ask.time.slept == []


def test_a_client_needs_neither_torch_nor_the_web_packages(url: str) -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "fastapi", "starlette", "uvicorn", "pydantic_settings", "safetensors"]))
import msmlp, numpy
from PIL import Image
pixels = numpy.zeros((32, 32, 3), numpy.uint8)
with msmlp.Client({url!r}) as client:
    print(len(client.classify([pixels, Image.fromarray(pixels)]).results), len(list(client.stream(pixels, max_exit=1))))
    try:
        client.classify(pixels, top_k=0)
    except msmlp.ServiceError as error:
        print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2 1\nbad_option\n", "")


# --- what is tried again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["classify", "stream", "model"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_when_it_wishes(ask: Driver, method: str, status: int) -> None:
    body = json.dumps({**LINE, "final": True}) + "\n" if method == "stream" else ANSWER
    with scripted(refusal(status, retry_after="7"), refusal(status, retry_after="2"), Reply(body=body)) as server:
        assert ask(server.url, method, *([b"image"] if method != "model" else []))
    assert ask.time.slept == [7, 2]
    assert len(server.asked) == 3


def test_a_lost_connection_is_tried_again_at_once_and_then_later(ask: Driver) -> None:
    with scripted(DROPPED, DROPPED, Reply()) as server:
        assert ask(server.url, "classify", b"image").results[0].label == "cat"
    first, second = ask.time.slept
    assert FIRST_WAIT / 2 <= first <= FIRST_WAIT <= second <= 2 * FIRST_WAIT


def test_a_busy_service_may_name_a_date(ask: Driver) -> None:
    soon, past = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (3600, -3600))
    asctime = soon.strftime("%a %b %d %H:%M:%S %Y")
    replies = [refusal(503, retry_after=text) for text in (format_datetime(soon, usegmt=True), asctime)]
    with scripted(*replies, refusal(429, retry_after=format_datetime(past, usegmt=True)), Reply()) as server:
        ask(server.url, "classify", b"image", timeout=10_000)
    *waited, none = ask.time.slept
    assert all(0 < seconds <= 3600 for seconds in waited)
    assert (len(waited), none) == (2, 0)


@pytest.mark.parametrize("text", ["\xb2", "-1", "1.5", "soon", "Wed, 99 Oct 2026 07:28:00 GMT"])
def test_what_is_neither_seconds_nor_a_date_is_waited_for_as_without(ask: Driver, text: str) -> None:
    with scripted(refusal(503, retry_after=text), Reply()) as server:
        ask(server.url, "classify", b"image")
    assert 0 < ask.time.slept[0] <= FIRST_WAIT


def test_every_attempt_is_the_same_request(ask: Driver) -> None:
    with scripted(refusal(429, retry_after="1"), DROPPED, Reply()) as server:
        ask(server.url, "classify", [b"one", b"two"], request_id="mine", thresholds=[0.5, 1], degrade=False)
    assert {asked.path for asked in server.asked} == {"/classify"}
    assert {asked.headers["x-request-id"] for asked in server.asked} == {"mine"}
    for asked in server.asked:
        assert asked.headers["content-type"].startswith("multipart/form-data")
        assert asked.body.index(b"one") < asked.body.index(b"two")
        assert b'name="thresholds"\r\n\r\n[0.5, 1]\r\n' in asked.body
        assert b'name="degrade"\r\n\r\nfalse\r\n' in asked.body
        assert b"top_k" not in asked.body


@pytest.mark.parametrize("retries", [0, 2])
def test_attempts_are_counted(ask: Driver, retries: int) -> None:
    with scripted(refusal(429, retry_after="1")) as server:
        error = ask.fails(server.url, "classify", b"image", retries=retries)
    assert len(server.asked) == retries + 1
    assert ask.time.slept == [1] * retries
    assert (error.status, error.code, error.detail, error.retry_after) == (429, "overloaded", "not now", 1)


def test_nothing_is_tried_again_after_the_timeout(ask: Driver) -> None:
    with scripted(refusal(503, retry_after="4")) as server:
        error = ask.fails(server.url, "classify", b"image", retries=99, timeout=10)
    assert ask.time.slept == [4, 4]
    assert len(server.asked) == 3
    assert error.retry_after == 4


@pytest.mark.parametrize("method", ["classify", "stream"])
@pytest.mark.parametrize("status", [400, 413, 415, 422, 500, 504])
def test_other_errors_are_final(ask: Driver, method: str, status: int) -> None:
    with scripted(refusal(status, "some_code", retry_after="1")) as server:
        error = ask.fails(server.url, method, b"image")
    assert (error.status, error.code, error.request_id) == (status, "some_code", "theirs")
    assert (len(server.asked), ask.time.slept) == (1, [])


@pytest.mark.parametrize("method", ["classify", "stream", "model"])
def test_an_unreachable_server(ask: Driver, method: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    error = ask.fails(url, method, *([b"image"] if method != "model" else []), retries=2)
    assert (error.status, error.code) == (None, "unreachable")
    assert url in error.detail
    assert len(ask.time.slept) == 2
    assert ask(url, "ready") is False
    assert len(ask.time.slept) == 2


def test_a_service_that_says_nothing_takes_too_long(ask: Driver) -> None:
    with scripted(SILENT) as server:
        error = ask.fails(server.url, "classify", b"image", timeout=0.05)
        assert (error.status, error.code) == (None, "timeout")
        assert server.url in error.detail
    assert ask.time.slept == []


@pytest.mark.parametrize("method", ["classify", "stream", "model"])
def test_an_answer_that_trickles_takes_too_long(ask: Driver, method: str) -> None:
    ask.time.clock = time.monotonic  # type: ignore[method-assign]
    with scripted(TRICKLE) as server:
        error = ask.fails(server.url, method, *([b"image"] if method != "model" else []), timeout=0.2)
    assert (error.status, error.code, len(server.asked)) == (None, "timeout", 1)


def test_a_service_that_is_not_ready(ask: Driver) -> None:
    with scripted(refusal(503, "starting", retry_after="1")) as server:
        assert ask(server.url, "ready") is False
    assert (server.asked[0].path, ask.time.slept) == ("/readyz", [])


# --- what is understood ------------------------------------------------------------------------------------------


def test_a_newer_services_fields_are_there_by_name(ask: Driver) -> None:
    newer: dict[str, Any] = json.loads(json.dumps(ANSWER))
    newer["region"] = {"name": "north"}
    newer["results"][0]["stages"][0]["watts"] = 3
    with scripted(Reply(body=newer)) as server:
        answer = ask(server.url, "classify", b"image")
    assert answer == newer
    assert answer["region"] == {"name": "north"}
    assert answer.results[0].stages[0]["watts"] == 3


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(502, "<html>bad gateway</html>"), "answers 502 Bad Gateway"),
        (Reply(404, {"detail": "Not Found"}), "answers 404 Not Found"),
        (Reply(401, ["no"]), "answers 401 Unauthorized"),
        (Reply(302, "", {"Location": "/login"}), "answers 302 Found"),
        (Reply(200, "<html>hello</html>"), "does not answer like an msmlp service"),
        (Reply(200, ["cat"]), "does not answer like an msmlp service"),
        (Reply(200, "cat", {"Content-Encoding": "gzip"}), "does not answer like an msmlp service"),
    ],
)
@pytest.mark.parametrize("method", ["classify", "stream"])
def test_another_servers_answer_is_called_so(ask: Driver, method: str, reply: Reply, said: str) -> None:
    with scripted(reply) as server:
        error = ask.fails(server.url, method, b"image")
        assert server.url in error.detail
    assert said in error.detail
    assert error.code == "not_understood"
    assert error.status == (reply.status if "Content-Encoding" not in reply.headers else None)


def test_a_stream_that_breaks_is_not_begun_again(ask: Driver) -> None:
    with scripted(Reply(body=json.dumps(LINE) + "\n", cut=True)) as server:
        error = ask.fails(server.url, "stream", b"image")
    assert (error.status, error.code, len(server.asked), ask.time.slept) == (None, "unreachable", 1, [])


def test_an_error_within_a_stream_is_raised(ask: Driver) -> None:
    problem = {"status": 503, "code": "engine_down", "detail": "the engine is down", "request_id": "x", "final": True}
    with scripted(Reply(body=f"{json.dumps(LINE)}\n{json.dumps(problem)}\n")) as server:
        error = ask.fails(server.url, "stream", b"image")
    assert (error.status, error.code, error.detail) == (503, "engine_down", "the engine is down")
    assert len(server.asked) == 1


def test_a_service_may_stand_below_a_path(ask: Driver) -> None:
    with scripted(Reply()) as server:
        ask(server.url + "/vision/", "classify", b"image")
        ask(server.url + "/vision", "model")
    assert [asked.path for asked in server.asked] == ["/vision/classify", "/vision/model"]


@pytest.mark.parametrize("kind", [msmlp.Client, msmlp.AsyncClient])
@pytest.mark.parametrize(
    "url", ["localhost:8000", "127.0.0.1", "ftp://here", "http://", "", "http://[::1", "http://h:x"]
)
def test_what_is_no_address_is_refused_at_once(kind: Callable[[str], Any], url: str) -> None:
    with pytest.raises(msmlp.MsmlpError, match="is not the address of a service"):
        kind(url)


@pytest.mark.parametrize("request_id", ["a\nb", "\u2603", "\xe9", "\udcff", "\x00"])
@pytest.mark.parametrize("method", ["classify", "stream"])
def test_a_request_id_that_no_header_can_carry(ask: Driver, method: str, request_id: str) -> None:
    with scripted(Reply()) as server:
        error = ask.fails(server.url, method, np.zeros((2, 2, 3), np.uint8), request_id=request_id)
    assert (error.code, ask.time.slept, server.asked) == ("not_sent", [], [])


def test_a_path_where_nothing_is_is_named(ask: Driver, url: str) -> None:
    error = ask.fails(f"{url}/x", "classify", b"image")
    assert (error.status, error.code) == (404, "not_found")
    assert error.detail.startswith(f"{url}/x/classify: no such path; ")


@pytest.mark.parametrize(
    ("given", "variable", "sent"),
    [
        (None, None, None),
        ("mine", None, "Bearer mine"),
        (None, "theirs", "Bearer theirs"),
        (None, "", None),
        ("mine", "theirs", "Bearer mine"),
        ("", "theirs", None),
    ],
)
def test_a_key_goes_with_every_request(
    ask: Driver, monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, sent: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("MSMLP_API_KEY", variable)
    with scripted(refusal(503), Reply(), Reply()) as server:
        ask(server.url, "classify", b"an image", api_key=given)
        ask(server.url, "model", api_key=given)
    assert [asked.headers.get("authorization") for asked in server.asked] == 3 * [sent]


def test_a_key_that_is_refused_is_not_tried_again(ask: Driver) -> None:
    with scripted(refusal(401, "unauthorized")) as server:
        error = ask.fails(server.url, "model", api_key="of-another-service")
    assert (error.status, error.code, len(server.asked)) == (401, "unauthorized", 1)
    assert str(error) == "not now; msmlp's clients take it from MSMLP_API_KEY"


@pytest.mark.parametrize("key", ["a b", "a\nX-Injected: yes", "k\u00e4se", "\x7f"])
def test_a_key_that_cannot_be_sent_is_not_shown(ask: Driver, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    for given, name in ((key, "api_key"), (None, "MSMLP_API_KEY")):
        if given is None:
            monkeypatch.setenv("MSMLP_API_KEY", key)
        with pytest.raises(CallerError) as caught:
            ask("http://127.0.0.1:1", "model", api_key=given)
        assert str(caught.value) == f"{name}: expected ASCII without blanks and line ends"
