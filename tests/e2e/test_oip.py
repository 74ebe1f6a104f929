"""The Open Inference Protocol between two processes: `msmlp serve` and the real `tritonclient`."""

import asyncio
from typing import Any

import httpx
import numpy as np
import tritonclient.http as triton
from tritonclient.http import aio

from tests.processes import Served
from tests.servers import encoded


def pixel_input(pixels: Any) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def test_the_answers_of_classify(served: Served, digits: Any) -> None:
    files = [("images", encoded(pixels)) for pixels in digits.test[:20]]
    expected = httpx.post(f"{served.url}/classify", files=files, timeout=60).json()["results"]
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        assert client.is_model_ready("msmlp")
        result = client.infer("msmlp", [pixel_input(digits.test[:20])])
    assert [label.decode() for label in result.as_numpy("label").tolist()] == [r["label"] for r in expected]
    assert result.as_numpy("exit").tolist() == [r["exit"] for r in expected]


def test_many_requests_at_once_get_their_own_answers(served: Served, digits: Any) -> None:
    async def ask() -> list[triton.InferResult]:
        async with aio.InferenceServerClient(served.url.removeprefix("http://")) as client:
            requests = [
                client.infer("msmlp", [pixel_input(digits.test[start : start + 3])], request_id=str(start))
                for start in range(0, 60, 3)
            ]
            return await asyncio.gather(*requests)

    together = asyncio.run(ask())
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        alone = client.infer("msmlp", [pixel_input(digits.test[:60])])
    assert [result.get_response()["id"] for result in together] == [str(start) for start in range(0, 60, 3)]
    for column in ("class_id", "exit"):
        found = np.concatenate([result.as_numpy(column) for result in together])
        np.testing.assert_array_equal(found, alone.as_numpy(column))
