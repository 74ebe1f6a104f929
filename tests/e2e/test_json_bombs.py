"""A large text of JSON does not stop the others, whatever it says: unread above the limit, unbuilt below it."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from msmlp.service.grpc.messages import ModelInferRequest
from tests.fakes import PATIENCE_SECONDS, picture
from tests.processes import Served, msmlp_serve
from tests.servers import encoded

IMAGE = encoded(picture(0.9))
LIMIT = 16 * 2**20
JSON = {"Content-Type": "application/json"}
CLASSIFY, INFER = "/classify", "/v2/models/msmlp/infer"
FORMS = ["[]", "{}", "0", '"a"', "[[]]", "1" * 1_000_000]
TENSOR = '{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1,32,32,3]'
BODIES = {
    "a member": (CLASSIFY, '{"images":[],"x":[%s]}'),
    "images": (CLASSIFY, '{"images":[%s]}'),
    "data": (INFER, TENSOR + ',"data":[%s]}]}'),
    "beside inputs": (INFER, TENSOR + ',"data":[1]}],"x":[%s]}'),
}


def bomb(body: str, form: str) -> bytes:
    items = (LIMIT - 1000) // (len(form) + 1)
    return body.replace("%s", ",".join([form] * items)).encode()


def post(served: Served, path: str, content: object, **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", content=content, headers={**JSON, **headers}, timeout=PATIENCE_SECONDS)


def check_alive(served: Served) -> None:
    assert httpx.get(f"{served.url}/livez", timeout=PATIENCE_SECONDS).status_code == 200
    answer = post(served, CLASSIFY, IMAGE, **{"Content-Type": "image/png"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", [CLASSIFY, INFER])
def test_above_the_limit_it_is_refused_before_it_is_sent(served: Served, path: str) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS)
    connection.putrequest("POST", path)
    for name, value in {**JSON, "Content-Length": str(LIMIT + 1)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, f"at most {LIMIT} are allowed" in answer.read().decode()) == (413, True)
    connection.close()


@pytest.mark.parametrize("path", [CLASSIFY, INFER])
def test_without_a_length_it_is_refused_as_it_comes(served: Served, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 2**20

    answer = post(served, path, chunks())
    assert (answer.status_code, f"more than {LIMIT} bytes" in answer.text) == (413, True)


def test_of_a_body_with_tensors_the_json_part_counts(served: Served) -> None:
    text = (TENSOR + ',"parameters":{"binary_data_size":5}}]}').encode()
    content = text + bytes(LIMIT)
    answer = post(served, INFER, content, **{"Inference-Header-Content-Length": str(len(text))})
    assert (answer.status_code, "binary_data_size is 5" in answer.text) == (400, True)
    answer = post(served, INFER, content + b"x", **{"Inference-Header-Content-Length": str(LIMIT + 1)})
    assert (answer.status_code, f"at most {LIMIT} are allowed" in answer.text) == (413, True)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[:5])
@pytest.mark.parametrize("body", BODIES)
def test_below_the_limit_it_is_refused_unbuilt(served: Served, body: str, form: str) -> None:
    path, text = BODIES[body]
    assert post(served, path, bomb(text, form)).status_code in (400, 413, 422)
    check_alive(served)


def refused(served: Served, method: str, content: bytes) -> grpc.StatusCode:
    with grpc.insecure_channel(served.grpc) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(content, timeout=PATIENCE_SECONDS)
    return caught.value.code()


@pytest.mark.parametrize(
    ("method", "content"),
    [
        ("ModelInfer", b"\x2a\x00" * 2**23),
        ("ModelInfer", b"\x32\x00" * 2**23),
        ("ModelInfer", ModelInferRequest(inputs=[{"contents": {"uint_contents": bytes(LIMIT)}}]).SerializeToString()),
        ("ModelReady", b"\x0a\x00" * 2**23),
    ],
    ids=["inputs", "outputs", "numbers", "a name again and again"],
)
def test_the_same_over_grpc(served: Served, method: str, content: bytes) -> None:
    assert refused(served, method, content) == grpc.StatusCode.INVALID_ARGUMENT
    check_alive(served)


@contextmanager
def probed(served: Served) -> Iterator[list[float]]:
    """Seconds that each /livez took meanwhile."""
    took, over = list[float](), threading.Event()

    def probe() -> None:
        with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
            while not over.is_set():
                asked = time.monotonic()
                assert client.get("/livez").status_code == 200
                took.append(time.monotonic() - asked)
                over.wait(0.01)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.chaos
def test_probes_are_answered_at_once_and_memory_stays(tiny_weights: Path) -> None:
    with msmlp_serve(tiny_weights, "--frontends", "1", "--engine", "inline", "--grpc-port", "0") as served:
        served.wait_until_ready()
        check_alive(served)
        before = peak_bytes(served.process.pid)
        for path, text in BODIES.values():
            for form in FORMS:
                content = bomb(text, form)
                with probed(served) as took:
                    senders = [threading.Thread(target=post, args=(served, path, content)) for _ in range(2)]
                    for sender in senders:
                        sender.start()
                    for sender in senders:
                        sender.join()
                assert max(took) < 0.25, (path, form[:5])
        assert peak_bytes(served.process.pid) - before < 20 * LIMIT
        with probed(served) as took:
            assert refused(served, "ModelInfer", b"\x2a\x00" * (LIMIT // 2)) == grpc.StatusCode.INVALID_ARGUMENT
        assert max(took) < 0.25
