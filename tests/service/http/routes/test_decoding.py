"""Pictures that take long to decode, over a real socket: refused, given up, or decoded beside those of others."""

import base64
import http.client
import io
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from msmlp.service.decoding.cost import DecodeTimes
from msmlp.service.service import Service
from tests.fakes import PATIENCE_SECONDS, picture
from tests.processes import msmlp_serve
from tests.servers import encoded, fake_backend, fake_service, knock, serving, wait_until

MANY = {"max_request_pixels": 10**10, "capacity": 4096}


def black(side: int) -> bytes:
    """Few bytes, whatever the size."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


LARGE, HUGE = black(2000), black(5000)


def form(*images: bytes) -> list[tuple[str, bytes]]:
    return [("images", image) for image in images]


def metric(client: httpx.Client, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"msmlp_{name} ")]
    return float(line.split()[-1])


def decoded(client: httpx.Client) -> float:
    return metric(client, 'decode_seconds_count{format="png"}')


@pytest.fixture
def serve(tiny_weights: Path) -> Callable[..., Service]:
    return lambda **settings: fake_service(tiny_weights, lambda: fake_backend(capacity=4096), **settings)


def test_more_pixels_than_a_request_may_have_are_413_in_every_protocol(serve: Callable[..., Service]) -> None:
    with serving(serve(max_request_pixels=10_000_000)) as client:
        answer = client.post("/classify", files=form(*[LARGE] * 3))
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_pixels")
        assert "12000000 pixels" in answer.json()["detail"]
        assert "10000000 (--max-request-pixels)" in answer.json()["detail"]
        files = [base64.b64encode(LARGE).decode()] * 3
        tensor = {"name": "image", "shape": [3], "datatype": "BYTES", "data": files}
        answer = client.post("/v2/models/msmlp/infer", json={"inputs": [tensor]})
        assert answer.status_code == 413
        assert "--max-request-pixels" in answer.json()["error"]
        assert decoded(client) == metric(client, "inflight_images") == 0
        assert client.post("/classify", files=form(*[LARGE] * 2)).status_code == 200
        assert decoded(client) == 2


def test_a_client_that_leaves_ends_its_decoding(serve: Callable[..., Service]) -> None:
    service = serve(decode_threads=1, **MANY)
    with serving(service) as client:
        with knock(client, files=form(*[LARGE] * 60)):
            wait_until(lambda: service.decoders.backlog() > 1)
        wait_until(lambda: service.engine.admission.inflight == 0)
        wait_until(lambda: service.decoders.backlog() == 0)
        assert metric(client, "decode_backlog_seconds") == 0
        assert metric(client, 'cancelled_total{where="decode"}') == 60
        assert decoded(client) < 60


def test_nothing_is_decoded_after_the_deadline(serve: Callable[..., Service]) -> None:
    with serving(serve(decode_threads=1, **MANY)) as client:
        answer = client.post("/classify", files=form(*[LARGE] * 100), params={"deadline_ms": 0.001})
        assert (answer.status_code, answer.json()["code"]) == (504, "expired")
        assert decoded(client) == 0
        assert metric(client, 'deadline_total{outcome="expired"}') == 100
        # An exit that is demanded outranks the deadline.
        answer = client.post("/classify", files=form(LARGE, LARGE), params={"deadline_ms": 0.001, "min_exit": 1})
        assert answer.status_code == 200
        assert decoded(client) == 2


def test_decoding_that_would_take_too_long_is_429_while_small_pictures_are_answered(
    serve: Callable[..., Service],
) -> None:
    service = serve(decode_threads=1, max_wait_ms=2000, **MANY)
    small = encoded(np.full((100, 100, 3), 9, np.uint8))
    with serving(service) as client:
        with knock(client, files=form(*[HUGE] * 18)):  # alone, it may take any time
            wait_until(lambda: service.decoders.backlog() > 1)
            answer = client.post("/classify", files=form(*[HUGE] * 18))
            assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
            assert "the predicted wait is" in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
            assert metric(client, 'shed_total{reason="wait"}') == 18
            assert service.engine.admission.inflight == 18, "its own permits have returned"
            assert metric(client, "decode_backlog_seconds") > 1
            assert client.post("/classify", files=form(small, small)).status_code == 200
            assert service.engine.admission.inflight == 18
        wait_until(lambda: service.engine.admission.inflight == 0)


def chunks(kind: bytes, content: bytes, number: int) -> bytes:
    """A PNG of 32 x 32 pixels with so many chunks after its header."""
    plain = encoded(np.full((32, 32, 3), 9, np.uint8))
    checked = kind + content
    chunk = len(content).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")
    return plain[:33] + chunk * number + plain[33:]


def test_what_a_picture_carries_beside_its_pixels_is_left_out_or_refused(serve: Callable[..., Service]) -> None:
    inflates = zlib.compress(bytes(2**25), 9)  # more than Pillow lets through
    profiles, empty = chunks(b"iCCP", b"a\0\0" + inflates, 3), chunks(b"abCd", b"", 5000)
    with serving(serve()) as client:
        assert client.post("/classify", files=form(profiles, profiles)).status_code == 200
        for images in ([empty], [empty, empty]):
            answer = client.post("/classify", files=form(*images))
            assert (answer.status_code, answer.json()["code"]) == (422, "undecodable_image")
            assert f"more than {1024 + len(empty) // 256} parts" in answer.text


def test_a_jpeg_of_many_scans_is_413_though_it_is_not_progressive(serve: Callable[..., Service]) -> None:
    data = encoded(np.full((100, 100, 3), 9, np.uint8), "JPEG")
    scan = data.rindex(b"\xff\xda")
    bomb = data[:scan] + data[scan:-2] * 500 + data[-2:]
    with serving(serve(max_pixels=20_000)) as client:
        answer = client.post("/classify", files=form(bomb))
        assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
        assert "500 scans" in answer.json()["detail"]


def test_those_refused_at_the_decoders_are_told_different_times(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecodeTimes, "predict", lambda *_: 0.4)
    service, opened = serve(decode_threads=1, max_wait_ms=2000, **MANY), threading.Event()
    with serving(service) as client, ThreadPoolExecutor(40) as pool:
        service.decoders.threads.submit(opened.wait)
        sent = [pool.submit(client.post, "/classify", files=form(LARGE)) for _ in range(40)]
        wait_until(lambda: service.engine.admission.inflight == 40)
        opened.set()
        answers = [each.result() for each in sent]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert metric(client, 'shed_total{reason="wait"}') == len(refused) > 20
    told = Counter(int(answer.headers["Retry-After"]) for answer in refused)
    assert set(told) == set(range(1, max(told) + 1)), "one second after the other"
    assert max(told.values()) <= 2, "as many pictures of 0.4 s as fit into a second"


def test_brownout_counts_what_waits_to_be_decoded(serve: Callable[..., Service]) -> None:
    service = serve(max_wait_ms=2000, brownout_ms=500)
    with serving(service):
        assert service.engine.brownout.level == 0
        service.engine.decode_backlog = lambda: 5.0
        wait_until(lambda: service.engine.brownout.level == 8)


def bomb(kind: str) -> bytes:
    """31 megapixels in a small file."""
    stream, size = io.BytesIO(), (5600, 5600)
    if kind == "WEBP":
        Image.new("RGBA", size).save(stream, kind, lossless=True)
    elif kind == "JPEG":
        Image.new("CMYK", size).save(stream, kind, progressive=True, quality=1)
    else:
        Image.new("P", size).save(stream, kind, transparency=0)
    return stream.getvalue()


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF", "JPEG"])
def test_a_bystander_is_answered_beside_pictures_of_31_megapixels(kind: str, tiny_weights: Path) -> None:
    image = picture(0.5, size=200)
    bystander, large = encoded(image, "JPEG"), bomb(kind)
    done = threading.Event()
    with msmlp_serve(tiny_weights, "--frontends", "2") as served:
        served.wait_until_ready(2)

        def attack() -> None:
            with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
                while not done.wait(0.5):
                    client.post("/classify", files=form(*[large] * 8))

        def timed(path: str, content: bytes | None) -> list[tuple[int, float]]:
            """On a new connection each time, so that every front end is asked."""
            found, end = [], time.monotonic() + 10
            while time.monotonic() < end:
                began = time.monotonic()
                connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=PATIENCE_SECONDS)
                connection.request("POST" if content else "GET", path, content, {"Content-Type": "image/jpeg"})
                found.append((connection.getresponse().status, time.monotonic() - began))
                connection.close()
                time.sleep(0.05)
            return found

        with ThreadPoolExecutor(6) as pool:
            attacks = [pool.submit(attack) for _ in range(4)]
            time.sleep(1)
            answers, lives = pool.submit(timed, "/classify", bystander), pool.submit(timed, "/livez", None)
            classified, lived = answers.result(), lives.result()
            done.set()
            for each in attacks:
                each.result()
    assert max(seconds for _, seconds in classified) < 5
    assert 2 * sum(status == 200 for status, _ in classified) >= len(classified)
    assert {status for status, _ in lived} == {200}
    assert max(seconds for _, seconds in lived) < 0.25
