"""The Open Inference Protocol over gRPC between two processes: `msmlp serve` and the real `tritonclient`."""

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from msmlp.service.oip.model import OUTPUTS
from tests.fakes import PATIENCE_SECONDS
from tests.processes import Served, msmlp_serve
from tests.servers import encoded, wait_until

EVERY_EXIT = {"thresholds": "1,1"}
"""Options of images that take every exit."""


@pytest.fixture(scope="module")
def caller(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.grpc) as caller:
        yield caller


def pixel_input(pixels: NDArray[np.uint8]) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def image_input(files: list[bytes]) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_))
    return tensor


def labels(result: triton.InferResult) -> list[str]:
    return [label.decode() for label in result.as_numpy("label").tolist()]


def classified(served: Served, files: list[bytes]) -> list[dict[str, Any]]:
    """What `POST /classify` says."""
    parts = [("images", file) for file in files]
    answer = httpx.post(f"{served.url}/classify", files=parts, timeout=PATIENCE_SECONDS)
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


@pytest.mark.parametrize("form", ["pixels", "files", "AVIF files"])
def test_the_answers_of_classify(served: Served, caller: triton.InferenceServerClient, digits: Any, form: str) -> None:
    files = [encoded(pixels, "AVIF" if form == "AVIF files" else "PNG") for pixels in digits.test[:20]]
    tensor = pixel_input(digits.test[:20]) if form == "pixels" else image_input(files)
    result = caller.infer("msmlp", [tensor], request_id="r-1")
    expected = classified(served, files)
    assert labels(result) == [r["label"] for r in expected]
    for column in ("class_id", "exit"):
        assert result.as_numpy(column).tolist() == [r[column] for r in expected]
    for column in ("confidence", "gflops"):
        np.testing.assert_allclose(result.as_numpy(column), [r[column] for r in expected], atol=1e-5)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1, atol=1e-5)
    response = result.get_response()
    assert (response.model_name, response.id) == ("msmlp", "r-1")
    assert response.parameters["source"].string_param == "default"
    assert [output.name for output in response.outputs] == list(OUTPUTS)


def test_only_the_outputs_asked_for_and_classification(caller: triton.InferenceServerClient, digits: Any) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", class_count=3), triton.InferRequestedOutput("label")]
    result = caller.infer("msmlp", [pixel_input(digits.test[:5])], outputs=wanted, parameters={"min_exit": 3})
    assert [output.name for output in result.get_response().outputs] == ["probabilities", "label"]
    best = result.as_numpy("probabilities")
    assert best.shape == (5, 3)
    for label, row in zip(labels(result), best.tolist(), strict=True):
        assert row[0].decode().split(":")[2] == label


def test_what_the_server_and_the_model_say_of_themselves(served: Served, caller: triton.InferenceServerClient) -> None:
    over_http = httpx.get(f"{served.url}/v2/models/msmlp", timeout=PATIENCE_SECONDS).json()
    [version] = over_http["versions"]
    assert caller.is_server_live()
    assert caller.is_server_ready()
    assert caller.is_model_ready("msmlp")
    assert caller.is_model_ready("msmlp", version)
    assert "statistics" in caller.get_server_metadata().extensions
    metadata = caller.get_model_metadata("msmlp", as_json=True)
    for kind in ("inputs", "outputs"):
        told = [{**tensor, "shape": list(map(int, tensor["shape"]))} for tensor in metadata[kind]]
        assert told == over_http[kind]
    config = caller.get_model_config("msmlp").config
    largest = httpx.get(f"{served.url}/v2/models/msmlp/config", timeout=PATIENCE_SECONDS).json()["max_batch_size"]
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("msmlp", largest, [32, 32, 3])
    assert config.input[1].optional
    [model] = caller.get_model_repository_index().models
    assert (model.version, model.state) == (version, "READY")


def test_statistics_count(caller: triton.InferenceServerClient, digits: Any) -> None:
    [before] = caller.get_inference_statistics().model_stats
    for _ in range(3):
        caller.infer("msmlp", [pixel_input(digits.test[:4])])
    with pytest.raises(InferenceServerException):
        caller.infer("msmlp", [pixel_input(digits.test[:4])], parameters={"policy": "best"})
    [after] = caller.get_inference_statistics("msmlp").model_stats
    assert after.inference_count - before.inference_count == 12
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1


@pytest.mark.parametrize(
    ("name", "parameters", "code", "said"),
    [
        ("other", {}, "NOT_FOUND", "no model 'other'"),
        ("msmlp", {"colour": 1}, "INVALID_ARGUMENT", "'colour': no such option"),
        ("msmlp", {"min_exit": 7}, "INVALID_ARGUMENT", "min_exit: "),
        ("msmlp", {"stream": True}, "INVALID_ARGUMENT", "stream: expected false: ModelInfer sends one response"),
        ("msmlp", {"deadline_ms": 1e-6}, "DEADLINE_EXCEEDED", "no image reached an exit by its deadline"),
    ],
)
def test_errors_have_their_codes(
    caller: triton.InferenceServerClient,
    digits: Any,
    name: str,
    parameters: dict[str, Any],
    code: str,
    said: str,
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        caller.infer(name, [pixel_input(digits.test[:1])], parameters=parameters)
    assert raised.value.status() == f"StatusCode.{code}"
    assert said in raised.value.message()


def test_no_picture(caller: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="not a readable image") as raised:
        caller.infer("msmlp", [image_input([b"GIF?"])])
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_options_and_a_timeout_are_parameters(caller: triton.InferenceServerClient, digits: Any) -> None:
    def exits(**given: Any) -> set[int]:
        found: set[int] = set(caller.infer("msmlp", [pixel_input(digits.test[:5])], **given).as_numpy("exit").tolist())
        return found

    assert exits(parameters={"thresholds": "0,0"}) == {1}
    assert exits(parameters={"thresholds": "0,0", "min_exit": 2}) == {2}
    assert exits(parameters=EVERY_EXIT, timeout=60_000_000, priority=1) == {3}
    with pytest.raises(InferenceServerException) as raised:
        exits(timeout=1)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_many_requests_at_once_get_their_own_answers(
    served: Served, caller: triton.InferenceServerClient, digits: Any
) -> None:
    async def ask() -> list[triton.InferResult]:
        async with aio.InferenceServerClient(served.grpc) as client:
            requests = [
                client.infer("msmlp", [pixel_input(digits.test[start : start + 3])], request_id=str(start))
                for start in range(0, 60, 3)
            ]
            return await asyncio.gather(*requests)

    together = asyncio.run(ask())
    alone = caller.infer("msmlp", [pixel_input(digits.test[:60])])
    assert [result.get_response().id for result in together] == [str(start) for start in range(0, 60, 3)]
    for column in ("class_id", "exit"):
        found = np.concatenate([result.as_numpy(column) for result in together])
        np.testing.assert_array_equal(found, alone.as_numpy(column))


class Answers:
    """What a stream's callback is told, in order."""

    def __init__(self) -> None:
        self._told: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._told.put((result, error))

    def next(self) -> tuple[Any, Any]:
        return self._told.get(timeout=PATIENCE_SECONDS)


def parameters(result: triton.InferResult) -> dict[str, Any]:
    found = result.get_response().parameters
    return {name: getattr(found[name], found[name].WhichOneof("parameter_choice")) for name in found}


def test_a_stream_of_requests(served: Served, digits: Any) -> None:
    answers = Answers()
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(answers)
        for number in range(30):
            given = {"policy": "best"} if number == 10 else {}
            client.async_stream_infer(
                "msmlp", [pixel_input(digits.test[number : number + 1])], request_id=str(number), parameters=given
            )
        client.stop_stream()
        alone = client.infer("msmlp", [pixel_input(digits.test[:30])])
    told = [answers.next() for _ in range(30)]
    assert "is not an operating point" in str(told[10][1])
    results = [result for number, (result, _) in enumerate(told) if number != 10]
    assert [int(result.get_response().id) for result in results] == [n for n in range(30) if n != 10]
    assert all(parameters(result)["triton_final_response"] for result in results)
    expected = np.delete(alone.as_numpy("class_id"), 10)
    np.testing.assert_array_equal(np.concatenate([result.as_numpy("class_id") for result in results]), expected)


def test_a_stream_of_exits(served: Served, digits: Any) -> None:
    answers = Answers()
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(answers)
        given = {**EVERY_EXIT, "stream": True}
        client.async_stream_infer("msmlp", [pixel_input(digits.test[:4])], request_id="s-1", parameters=given)
        told: list[tuple[int, int, bool]] = []
        last = False
        while not last:
            result, error = answers.next()
            assert error is None
            said = parameters(result)
            told.append((said["index"], int(result.as_numpy("exit")[0]), said["final"]))
            last = said["triton_final_response"]
            assert result.get_response().id == "s-1"
            assert said["reason"] == ("final" if said["final"] else "goes_on")
        client.stop_stream()
        alone = client.infer("msmlp", [pixel_input(digits.test[:4])], parameters=EVERY_EXIT)
    assert sorted(told) == [(image, exit, exit == 3) for image in range(4) for exit in (1, 2, 3)]
    assert result.as_numpy("class_id")[0] == alone.as_numpy("class_id")[said["index"]]


def test_cancelled_calls_are_counted_and_keep_no_permit(served: Served, digits: Any) -> None:
    cancelled = 'msmlp_requests_total{route="grpc/ModelInfer",status="499"}'

    def count() -> float:
        lines = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(cancelled))

    before = count()
    # Pictures that take long to be resized.
    large = pixel_input(np.zeros((40, 700, 700, 3), dtype=np.uint8))
    with triton.InferenceServerClient(served.grpc) as client:

        def seen() -> bool:
            """A call that is cancelled while it is answered, if it is not answered sooner."""
            ended = threading.Event()
            call = client.async_infer("msmlp", [large], lambda result, error: ended.set())
            wait_until(lambda: ended.is_set() or served.metric("msmlp_inflight_images") > 0)
            call.cancel()
            wait_until(lambda: served.metric("msmlp_inflight_images") == 0)
            return count() > before

        wait_until(seen)
    assert count() > before
    assert served.metric("msmlp_inflight_images") == 0


def test_a_signal_ends_an_idle_stream_and_everything_in_order(tiny_weights: Path, digits: Any) -> None:
    with msmlp_serve(tiny_weights, "--grpc-port", "0") as running:
        running.wait_for("engine: ready")
        answers = Answers()
        with triton.InferenceServerClient(running.grpc) as client:
            client.start_stream(answers)
            client.async_stream_infer("msmlp", [pixel_input(digits.test[:1])], request_id="a")
            assert answers.next()[0].get_response().id == "a"
            running.process.send_signal(signal.SIGTERM)
            _, error = answers.next()
            said = "this process of the service ends; open another stream"
            assert (error.status(), error.message()) == ("StatusCode.UNAVAILABLE", said)
            assert running.end() == 0
        assert "Traceback" not in running.log


def test_without_the_extra_it_is_one_clear_line(tiny_weights: Path) -> None:
    program = (
        "import sys; sys.modules['grpc'] = None; from msmlp.main import main; "
        f"sys.argv = ['msmlp', 'serve', '--weights', {str(tiny_weights)!r}, '--grpc-port', '0']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith('msmlp: --grpc-port: needs the package grpc: pip install "msmlp[grpc]"')
