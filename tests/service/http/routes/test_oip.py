"""The Open Inference Protocol of a real server: the real `tritonclient`, and what only raw requests can say."""

import base64
import gzip
import json
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from msmlp.service.http.body import SLICE
from msmlp.service.http.json_body import read_json
from msmlp.service.oip.model import OUTPUTS
from msmlp.service.oip.request import decompress, read_inference
from tests.fakes import picture, pictures
from tests.servers import Submissions, encoded, fake_backend, fake_service, knock, serving, wait_until

INFER = "/v2/models/msmlp/infer"
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def caller(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as caller:
        yield caller


@pytest.fixture(scope="module")
def name(client: httpx.Client) -> str:
    return str(client.get("/model").json()["name"])


def pixel_input(pixels: NDArray[np.uint8], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def image_input(files: list[bytes]) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_))
    return tensor


def columns(result: triton.InferResult) -> dict[str, Any]:
    """Every output as an array; labels as texts."""
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    return {**found, "label": [label.decode() for label in found["label"].tolist()]}


def classified(client: httpx.Client, files: list[bytes], thresholds: list[float]) -> list[dict[str, Any]]:
    """What `POST /classify` says."""
    parts = [("images", file) for file in files]
    answer = client.post("/classify", files=parts, params={"thresholds": str(thresholds)})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def same(found: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """The outputs say what `POST /classify` says."""
    for column in ("label", "class_id", "exit"):
        assert list(found[column]) == [result[column] for result in results]
    for column in ("confidence", "gflops"):
        np.testing.assert_allclose(found[column], [result[column] for result in results], atol=1e-5)
    np.testing.assert_allclose(found["probabilities"].max(axis=1), found["confidence"], atol=1e-6)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("form", ["pixels", "pixels in JSON", "files"])
def test_the_answers_of_classify(
    client: httpx.Client,
    caller: triton.InferenceServerClient,
    name: str,
    digits: Any,
    digit_files: list[bytes],
    parting: list[float],
    form: str,
) -> None:
    count = 12 if form == "pixels in JSON" else 64
    tensor = (
        image_input(digit_files[:count])
        if form == "files"
        else pixel_input(digits.test[:count], binary=form == "pixels")
    )
    # The client says no outputs, and so wants all, binary.
    result = caller.infer(name, [tensor], request_id="r-1", parameters={"thresholds": str(parting)})
    expected = classified(client, digit_files[:count], parting)
    assert count < 64 or {result["exit"] for result in expected} == {1, 2, 3}
    same(columns(result), expected)
    response = result.get_response()
    assert (response["model_name"], response["id"]) == (name, "r-1")
    assert response["parameters"] == {"source": "request"}


def test_pixels_of_another_size_are_what_their_picture_is(
    client: httpx.Client, caller: triton.InferenceServerClient, cat_photo: bytes
) -> None:
    cat = skimage.data.cat()
    result = caller.infer("msmlp", [pixel_input(np.stack([cat, cat[::-1]]))], parameters={"thresholds": "1,1"})
    same(columns(result), classified(client, [encoded(cat), encoded(cat[::-1])], [1, 1]))


def test_only_the_outputs_asked_for_each_as_it_was_asked(caller: triton.InferenceServerClient, digits: Any) -> None:
    wanted = [
        triton.InferRequestedOutput("exit", binary_data=False),
        triton.InferRequestedOutput("label", binary_data=True),
        triton.InferRequestedOutput("probabilities", binary_data=False, class_count=3),
    ]
    result = caller.infer("msmlp", [pixel_input(digits.test[:5])], outputs=wanted, parameters={"max_exit": 1})
    assert [output["name"] for output in result.get_response()["outputs"]] == ["exit", "label", "probabilities"]
    assert result.as_numpy("class_id") is None
    assert result.as_numpy("exit").tolist() == [1] * 5
    best = result.as_numpy("probabilities")
    assert best.shape == (5, 3)
    for label, row in zip(result.as_numpy("label").tolist(), best.tolist(), strict=True):
        probabilities, _, labels = zip(*(entry.split(":") for entry in row), strict=True)
        assert labels[0] == label.decode()
        assert sorted(map(float, probabilities), reverse=True) == list(map(float, probabilities))


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_bodies(caller: triton.InferenceServerClient, digits: Any, compression: str) -> None:
    result = caller.infer(
        "msmlp",
        [pixel_input(digits.test[:20])],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert result.as_numpy("exit").shape == (20,)


def test_decompressed_bytes_count_beside_those_that_came(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend, max_body_bytes=100_000, max_bodies_bytes=100_000)
    pixels = np.zeros((20, 32, 32, 3), np.uint8)
    body, length = triton.InferenceServerClient.generate_request_body([pixel_input(pixels)])
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(length)}
    packed = gzip.compress(body)
    assert len(packed) < 1000 < len(body) < 100_000 < 2 * len(body)
    with serving(service) as client, ThreadPoolExecutor(2) as pool:
        with backend.gate.held():
            first = pool.submit(client.post, INFER, content=packed, headers=headers)
            backend.gate.wait_until_reached()
            second = client.post(INFER, content=packed, headers=headers)
        assert (second.status_code, list(second.json())) == (429, ["error"])
        assert "request bodies already take" in second.json()["error"]
        assert first.result().status_code == 200
        assert client.post(INFER, content=packed, headers=headers).status_code == 200


def test_a_client_that_leaves_and_scores_that_are_no_numbers(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    body, length = triton.InferenceServerClient.generate_request_body([pixel_input(pictures(1, 1.0, size=32))])
    headers = {"Inference-Header-Content-Length": str(length)}
    with serving(service) as client:
        with backend.gate.held():
            with suppress(httpx.TimeoutException):
                client.post(INFER, content=body, headers=headers, timeout=0.5)
            left = 'msmlp_requests_total{route="/v2/models/{name}/infer",status="499"} 1.0'
            wait_until(lambda: left in client.get("/metrics").text)
            assert service.engine.admission.inflight == 0
        collect = backend.collect

        def spoilt(handle: Any) -> Any:
            output = collect(handle)
            output.score[:] = np.nan
            return output

        backend.collect = spoilt  # type: ignore[method-assign]
        answer = client.post(INFER, content=body, headers=headers)
        assert (answer.status_code, list(answer.json())) == (503, ["error"])


def test_while_the_images_of_a_tensor_wait_they_are_held_once(tiny_weights: Path) -> None:
    image = encoded(picture(1.0, size=32))
    image += bytes(20_000_000 - len(image))
    body, length = triton.InferenceServerClient.generate_request_body([image_input([image])])
    backend = fake_backend()
    headers = {"Inference-Header-Content-Length": str(length)}
    with serving(fake_service(tiny_weights, lambda: backend)) as client, ThreadPoolExecutor(1) as pool:
        tracemalloc.start()
        try:
            with backend.gate.held():
                answer = pool.submit(client.post, INFER, content=body, headers=headers)
                backend.gate.wait_until_reached()
                # Threads that passed it on may be about to let it go.
                wait_until(lambda: tracemalloc.get_traced_memory()[0] < 1.5 * len(image))
        finally:
            tracemalloc.stop()
        assert answer.result().status_code == 200


def test_large_requests_are_read_one_at_a_time_and_few_wait(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the thread is held: those that would wait too long are refused, those that have left are not read, and a
    small one is read first, though it came last."""
    read: list[int] = []

    def spied(content: bytes, *arguments: Any) -> Any:
        read.append(len(content))
        return read_json(content, *arguments)

    def spied_too(content: bytes, *arguments: Any) -> bytes:
        read.append(len(content))
        return decompress(content, *arguments)

    monkeypatch.setattr("msmlp.service.http.body.read_json", spied)
    monkeypatch.setattr("msmlp.service.http.routes.oip.decompress", spied_too)
    monkeypatch.setattr("msmlp.service.parsing.PATIENCE", 1e6)
    service, opened = fake_service(tiny_weights, fake_backend, max_wait_ms=100), threading.Event()
    packed, shed = gzip.compress(b" " * 12_000_000), 'msmlp_shed_total{reason="door"} '
    image = base64.b64encode(encoded(picture(0.5, size=32))).decode()
    small = json.dumps({"images": [image]}).encode() + b" " * SLICE
    kind = {"Content-Type": "application/json"}

    def waiting() -> int:
        return service.parser.thread._work_queue.qsize()

    with serving(service) as client, ThreadPoolExecutor(9) as pool:
        service.parser.thread.submit(opened.wait)
        with knock(client, content=b" " * 10_000_000, headers=kind):
            wait_until(lambda: waiting() == 1)
        wait_until(lambda: 'status="499"' in client.get("/metrics").text)
        sent = [pool.submit(client.post, INFER, content=packed, headers={"Content-Encoding": "gzip"}) for _ in range(8)]
        wait_until(lambda: sum(each.done() for each in sent) == 5)
        refused = [each.result() for each in sent if each.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert all("the predicted wait is" in answer.json()["error"] for answer in refused)
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert f"{shed}5.0" in client.get("/metrics").text
        late = pool.submit(client.post, "/classify", content=small, headers=kind)
        wait_until(lambda: waiting() == 5)
        opened.set()
        assert late.result().status_code == 200
        assert sorted(each.result().status_code for each in sent) == [400] * 3 + [429] * 5
    assert read == [len(small)] + [len(packed)] * 3


def test_a_gzip_body_is_not_longer_than_it_says(client: httpx.Client) -> None:
    packed = gzip.compress(b" " * 1_000_000)
    packed = packed[:-4] + (1000).to_bytes(4, "little")
    answer = client.post(INFER, content=packed, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()) == (400, {"error": "the body is not one complete gzip stream"})


def test_options_are_parameters(caller: triton.InferenceServerClient, digits: Any) -> None:
    def infer(**parameters: Any) -> tuple[set[int], dict[str, Any]]:
        result = caller.infer("msmlp", [pixel_input(digits.test[:5])], parameters=parameters)
        return set(result.as_numpy("exit").tolist()), result.get_response()["parameters"]

    assert infer(thresholds="0,0")[0] == {1}
    assert infer(thresholds="1,1")[0] == {3}
    assert infer(thresholds="0,0", min_exit=2)[0] == {2}
    assert infer(policy="fast")[1] == {"operating_point": "fast", "source": "request"}
    assert infer(top_k=2)[1] == {"operating_point": "balanced", "source": "default"}
    with pytest.raises(
        InferenceServerException, match="policy: 'best' is not an operating point; expected one of fast"
    ) as raised:
        infer(policy="best")
    assert raised.value.status() == "400"


def test_what_the_server_and_the_model_say_of_themselves(
    client: httpx.Client, caller: triton.InferenceServerClient, name: str
) -> None:
    version = client.get("/model").json()["version"]
    assert caller.is_server_live()
    assert caller.is_server_ready()
    assert {"binary_tensor_data", "classification", "statistics"} <= set(caller.get_server_metadata()["extensions"])
    for model in (name, "msmlp"):
        for asked in ("", version):
            assert caller.is_model_ready(model, asked)
            metadata = caller.get_model_metadata(model, asked)
            assert (metadata["name"], metadata["versions"]) == (model, [version])
            config = caller.get_model_config(model, asked)
            assert (config["name"], config["max_batch_size"]) == (model, 64)
    assert {t["name"]: (t["datatype"], t["shape"]) for t in metadata["inputs"]} == {
        "pixels": ("UINT8", [-1, 32, 32, 3]),
        "image": ("BYTES", [-1]),
    }
    assert {t["name"]: (t["datatype"], t["shape"]) for t in metadata["outputs"]} == {
        "label": ("BYTES", [-1]),
        "class_id": ("INT32", [-1]),
        "confidence": ("FP32", [-1]),
        "exit": ("INT32", [-1]),
        "gflops": ("FP32", [-1]),
        "probabilities": ("FP32", [-1, 10]),
    }
    assert {t["name"]: (t["data_type"], t["dims"]) for t in config["input"]} == {
        "pixels": ("TYPE_UINT8", [32, 32, 3]),
        "image": ("TYPE_STRING", []),
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json()["ready"] is True


def test_statistics_count(caller: triton.InferenceServerClient, digits: Any) -> None:
    def read(model: str = "") -> dict[str, Any]:
        (entry,) = caller.get_inference_statistics(model)["model_stats"]
        return entry

    before = read()
    for _ in range(3):
        caller.infer("msmlp", [pixel_input(digits.test[:4])])
    with pytest.raises(InferenceServerException):
        caller.infer("msmlp", [pixel_input(digits.test[:4])], parameters={"policy": "best"})
    after = read("msmlp")
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] > before["execution_count"]
    assert isinstance(after["version"], str)
    counted = {
        kind: tuple(
            after["inference_stats"][kind][part] - before["inference_stats"][kind][part] for part in ("count", "ns")
        )
        for kind in after["inference_stats"]
    }
    assert {kind: count for kind, (count, _) in counted.items()} == {
        **dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 3),
        "fail": 1,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    parts = sum(counted[kind][1] for kind in ("queue", "compute_input", "compute_infer"))
    assert 0 < counted["compute_infer"][1] < parts <= counted["success"][1]


def json_request(*files: bytes, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": data}], **more}


def test_json_alone(client: httpx.Client, cat_photo: bytes) -> None:
    answer = client.post(INFER, json=json_request(cat_photo, outputs=[{"name": "label"}, {"name": "class_id"}]))
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert "Inference-Header-Content-Length" not in answer.headers
    assert "Server-Timing" in answer.headers
    document = answer.json()
    assert document["id"] == answer.headers["X-Request-ID"]
    label, class_id = document["outputs"]
    assert (label["datatype"], label["shape"], class_id["datatype"]) == ("BYTES", [1], "INT32")
    assert client.get("/model").json()["classes"][class_id["data"][0]] == label["data"][0]


def test_what_mlservers_clients_add_is_no_option(client: httpx.Client, cat_photo: bytes) -> None:
    request = json_request(cat_photo, parameters={"content_type": "np"}, outputs=[{"name": "label"}])
    for tensor in request["inputs"] + request["outputs"]:
        tensor["parameters"] = {"content_type": "base64"}
    answer = client.post(INFER, json=request)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["name"] == "label"


def test_avif_in_every_form(client: httpx.Client, caller: triton.InferenceServerClient, digits: Any) -> None:
    files = [encoded(pixels, "AVIF") for pixels in digits.test[:3]]
    expected = classified(client, files, [1, 1])
    same(columns(caller.infer("msmlp", [image_input(files)], parameters={"thresholds": "1,1"})), expected)
    labels = client.post(INFER, json=json_request(*files, outputs=[{"name": "label"}])).json()["outputs"][0]
    assert labels["data"] == [result["label"] for result in expected]
    answer = client.post(INFER, content=files[0], headers={**OCTETS, "Inference-Header-Content-Length": "0"})
    assert answer.status_code == 200, answer.text


def test_the_image_as_the_body(client: httpx.Client, cat_photo: bytes) -> None:
    answer = client.post(INFER, content=cat_photo, headers={**OCTETS, "Inference-Header-Content-Length": "0"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers["Inference-Header-Content-Length"])
    outputs = json.loads(answer.content[:length])["outputs"]
    assert [output["name"] for output in outputs] == list(OUTPUTS)
    assert length + sum(output["parameters"]["binary_data_size"] for output in outputs) == len(answer.content)


def test_an_image_that_expired_has_an_exit_of_0(tiny_weights: Any) -> None:
    """Two images, batches of one: the second waits for the first until the deadline has passed."""
    backend = fake_backend(max_batch=1)
    service = fake_service(tiny_weights, lambda: backend)
    with serving(service) as client:
        caller = triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}")
        pixels = np.stack([picture(0.1, 0.1, 0.9, label=4, size=32)] * 2)
        backend.fail = lambda *_: time.sleep(1)  # the deadline passes while the first is on the device
        result = caller.infer("msmlp", [pixel_input(pixels)], parameters={"deadline_ms": 1000, "thresholds": "1,1"})
        caller.close()
    found = columns(result)
    assert list(found["exit"]) == [1, 0]
    assert list(found["class_id"][1:]) == [-1]
    assert found["label"][1] == ""
    assert (found["confidence"][1], found["gflops"][1]) == (0, 0)
    assert not found["probabilities"][1].any()


def check_error(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"}
    assert "Traceback" not in document["error"]
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    return str(document["error"])


PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
PROVOKED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "no JSON": (400, "JSON", {"content": b"{"}),
    "nothing": (400, "JSON", {"content": b""}),
    "no inputs": (400, "0 inputs were sent", {"json": {"inputs": []}}),
    "a header beyond the body": (
        400,
        "expected 0 to 2",
        {"content": b"{}", "headers": {"Inference-Header-Content-Length": "3"}},
    ),
    "fewer numbers than the shape": (400, "data has shape", {"json": {"inputs": [{**PIXELS, "data": [1]}]}}),
    "no picture": (400, "not a readable image", {"json": json_request(b"GIF?")}),
    "no picture as the body": (
        400,
        "not a readable image",
        {"content": b"", "headers": {"Inference-Header-Content-Length": "0"}},
    ),
    "an unknown option": (400, "no such option", {"json": json_request(b"x", parameters={"colour": 1})}),
    "a stream": (400, "stream: ", {"json": json_request(b"x", parameters={"stream": True})}),
    "another encoding": (400, "not supported", {"content": b"x", "headers": {"Content-Encoding": "br"}}),
    "no gzip": (400, "the body is not valid gzip", {"content": b"GIF89a", "headers": {"Content-Encoding": "gzip"}}),
    "too many images": (413, "65 images in one request; at most 64", {"json": json_request(*[b"x"] * 65)}),
    "too many pixels": (
        413,
        "the limit is 1000000",
        {"json": {"inputs": [{**PIXELS, "shape": [1, 10000, 101, 3], "data": []}]}},
    ),
    "too many bytes": (413, "at most 2000000", {"content": b" " * 2_000_001}),
    "too many bytes, once decompressed": (
        413,
        "decompressed body has more than 2000000 bytes",
        {"content": gzip.compress(b" " * 2_000_001), "headers": {"Content-Encoding": "gzip"}},
    ),
    "too many bytes, deflated": (
        413,
        "decompressed body has more than 2000000 bytes",
        {"content": zlib.compress(b" " * 2_000_001), "headers": {"Content-Encoding": "deflate"}},
    ),
}


@pytest.mark.parametrize("provocation", PROVOKED)
def test_every_error_has_the_protocols_form(client: httpx.Client, provocation: str) -> None:
    status, said, request = PROVOKED[provocation]
    assert said in check_error(client.post(INFER, **request), status)


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/infer", "/v2/models/msmlp/versions/1/ready"])
def test_unknown_models_and_versions(client: httpx.Client, path: str) -> None:
    call = client.post if path.endswith("infer") else client.get
    assert "no model" in check_error(call(path), 404)


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    check_error(client.get("/v2/"), 404)
    check_error(client.post("/v2/repository/models/msmlp/load"), 404)
    check_error(client.get(INFER), 405)


def test_before_it_is_ready_and_when_it_is_full(tiny_weights: Any) -> None:
    backend = fake_backend(capacity=4)
    service = fake_service(tiny_weights, lambda: backend, capacity=4)
    with serving(service) as client:
        full = pixel_request(pictures(4, 0.9, size=32))
        submissions = Submissions(service.engine)
        with backend.gate.held():
            first = threading.Thread(target=client.post, args=(INFER,), kwargs=full)
            first.start()
            submissions.wait_for(1)
            assert "4 of 4 images in flight" in check_error(client.post(INFER, **full), 429)
        first.join()
        service.draining = True
        for path in ("/v2/health/ready", "/v2/models/msmlp/ready"):
            check_error(client.get(path), 503)
        assert client.post(INFER, **full).status_code == 200, "as long as somebody sends"
        assert client.get("/v2/health/live").status_code == 200


def pixel_request(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    tensor = {**PIXELS, "shape": list(pixels.shape), "parameters": {"binary_data_size": pixels.nbytes}}
    text = json.dumps({"inputs": [tensor]}).encode()
    return {"content": text + pixels.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(text))}}


def test_a_failure_of_the_server_has_the_protocols_form_too(
    own_client: httpx.Client, monkeypatch: pytest.MonkeyPatch, digits: Any
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/etc/secret")

    monkeypatch.setattr("msmlp.service.http.routes.oip.output_tensors", broken)
    assert check_error(own_client.post(INFER, **pixel_request(digits.test[:1])), 500) == "the server failed"


def test_metrics_name_few_routes(client: httpx.Client) -> None:
    for path in ("/v2/models/a", "/v2/models/b/versions/3", "/v2/x"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'route="/v2/models/{name}",status="404"' in text
    assert "/v2/x" not in text
    assert "/v2/models/a" not in text


@pytest.mark.parametrize("form", ["pixels", "files"])
def test_a_body_that_is_slow_to_parse_delays_no_other_request(
    own_client: httpx.Client, digits: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Pixels stay where they are, however many; files are copied one by one."""
    threads: list[str] = []

    def spied(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return read_inference(*arguments)

    monkeypatch.setattr("msmlp.service.http.routes.oip.read_inference", spied)
    files = [encoded(pixels) + bytes(SLICE) for pixels in digits.test[:2]]
    tensor = image_input(files) if form == "files" else pixel_input(digits.test[:64])
    with triton.InferenceServerClient(f"127.0.0.1:{own_client.base_url.port}") as caller:
        caller.infer("msmlp", [tensor])
    [thread] = threads
    # asyncio.to_thread's threads have such names; the loop's own is the server's.
    assert thread.startswith("asyncio_") == (form == "files")


def test_the_index_of_the_repository(client: httpx.Client, caller: triton.InferenceServerClient) -> None:
    model = client.get("/model").json()
    [entry] = caller.get_model_repository_index()
    assert entry == {"name": model["name"], "version": model["version"], "state": "READY"}
    assert client.post("/v2/repository/index", json={"ready": True}).json() == [entry]
    for body in (b"[]", b"{", b'{"ready": 1}'):
        check_error(client.post("/v2/repository/index", content=body), 400)
