"""What the protocol says of the server and of the model: names, datatypes, shapes."""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

ALIAS = "msmlp"
"""The model's other name, whatever its manifest calls it."""

INPUTS = {"pixels": "UINT8", "image": "BYTES"}
OUTPUTS = {
    "label": "BYTES",
    "class_id": "INT32",
    "confidence": "FP32",
    "exit": "INT32",
    "gflops": "FP32",
    "probabilities": "FP32",
}
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"]


@dataclass(frozen=True)
class Shapes:
    """Dimensions of one image's tensors, by the model's image size and number of classes."""

    size: int
    classes: int

    def of(self, name: str) -> list[int]:
        """Without the batch."""
        return {"pixels": [self.size, self.size, 3], "probabilities": [self.classes]}.get(name, [])


def server_metadata() -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": "msmlp", "version": "1", "extensions": EXTENSIONS}


def model_metadata(name: str, version: str, shapes: Shapes) -> dict[str, Any]:
    """`GET /v2/models/{name}`."""

    def tensors(kinds: dict[str, str]) -> list[dict[str, Any]]:
        return [{"name": n, "datatype": d, "shape": [-1, *shapes.of(n)]} for n, d in kinds.items()]

    return {
        "name": name,
        "versions": [version],
        "platform": "msmlp",
        "inputs": tensors(INPUTS),
        "outputs": tensors(OUTPUTS),
    }


def model_configuration(name: str, max_batch: int, shapes: Shapes) -> dict[str, Any]:
    """`GET /v2/models/{name}/config`, in Triton's form: dimensions without the batch."""

    def tensors(kinds: dict[str, str], **more: Any) -> list[dict[str, Any]]:
        return [
            {"name": n, "data_type": _CONFIG_TYPES.get(d, f"TYPE_{d}"), "dims": shapes.of(n), **more}
            for n, d in kinds.items()
        ]

    return {
        "name": name,
        "platform": "msmlp",
        "backend": "msmlp",
        "max_batch_size": max_batch,
        "input": tensors(INPUTS, optional=True),  # one of the two
        "output": tensors(OUTPUTS),
    }


_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


# FROM service/oip/model.py:
# Errors as the protocol has them.

_BAD_REQUEST = (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY)


def oip_error(status: int, detail: str) -> tuple[int, dict[str, Any]]:
    """The status and body of an error: what is wrong with a request's content is 400, all else as everywhere."""
    return HTTPStatus.BAD_REQUEST if status in _BAD_REQUEST else status, {"error": detail}


# FROM service/oip/model.py:
# The protocol's paths: which requests are its, and how metrics call them.

_MODEL = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?(/ready|/config|/stats|/infer)?")
_SERVER = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index")


def is_oip(path: str) -> bool:
    """Whether errors under this path take the protocol's form."""
    return path == "/v2" or path.startswith("/v2/")


def route_label(path: str) -> str | None:
    """One of a bounded set of names; None for what the protocol does not know."""
    if path in _SERVER:
        return path
    model = _MODEL.fullmatch(path)
    return f"/v2/models/{{name}}{model[1] or ''}" if model else None
