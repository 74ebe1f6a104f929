"""Run in an environment of KServe's own: `kserve_client.py URL PIXELS.npy IMAGE` prints what its client was told."""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

WANTED = ("label", "exit", "confidence")


async def ask(url: str, pixels: Any, image: bytes) -> dict[str, Any]:
    """Each way to send images, each way to be answered, and one mistake."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    told: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "msmlp"),
    }

    async def infer(name: str, datatype: str, data: Any, *, binary: bool, **parameters: Any) -> dict[str, Any]:
        tensor = InferInput(name, list(data.shape), datatype)
        tensor.set_data_from_numpy(data, binary_data=binary)
        outputs = [RequestedOutput(output, {"binary_data": binary}) for output in WANTED]
        request = InferRequest("msmlp", [tensor], "r-1", parameters=parameters, request_outputs=outputs)
        answer = await client.infer(url, request, model_name="msmlp")
        found: dict[str, Any] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
        return {**found, "id": answer.id}

    told["binary pixels"] = await infer("pixels", "UINT8", pixels, binary=True)
    told["json pixels"] = await infer("pixels", "UINT8", pixels, binary=False)
    told["binary image"] = await infer("image", "BYTES", np.array([image], dtype=np.object_), binary=True)
    text = base64.b64encode(image)
    told["json image"] = await infer("image", "BYTES", np.array([text], dtype=np.object_), binary=False)
    try:
        await infer("pixels", "UINT8", pixels, binary=True, policy="best")
    except httpx.HTTPStatusError as error:
        told["error"] = str(error)
    await client.close()
    return told


if __name__ == "__main__":
    answers = asyncio.run(ask(sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3]).read_bytes()))
    print(json.dumps(answers, default=lambda value: value.decode()))  # noqa: T201
