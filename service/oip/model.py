"""The protocol's view of the server and its model, over REST and gRPC: names, datatypes, shapes, errors."""

import re
from http import HTTPStatus
from typing import Any

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import UnknownModelError
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RequestRecord

ALIAS = "msmlp"
"""A second name of the model, in addition to the name in its manifest."""

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

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header, over REST, that says how many bytes of a body are JSON, before binary tensors."""

_MODEL = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?(/ready|/config|/stats|/infer)?")
_SERVER = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index")


def is_oip(path: str) -> bool:
    """Whether errors under this path take the protocol's form."""
    return path == "/v2" or path.startswith("/v2/")


def route_label(path: str) -> str | None:
    """One of a bounded set of names; None for a path that the protocol does not know."""
    if path in _SERVER:
        return path
    model = _MODEL.fullmatch(path)
    return f"/v2/models/{{name}}{model[1] or ''}" if model else None


def oip_error(status: int, detail: str) -> tuple[int, dict[str, Any]]:
    """The status and body of an error; every mistake in a request's content is 400."""
    content = status in (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY)
    return HTTPStatus.BAD_REQUEST if content else status, {"error": detail}


def check_model(service: Service, name: str, version: str | None) -> str:
    """`name`; UnknownModelError unless it is the served model's and `version`, if given, its version."""
    model = service.facts.model
    if name not in (model["name"], ALIAS) or version not in (None, model["version"]):
        asked = ascii(name[:100]) + (f" version {version[:40]!a}" if version else "")
        raise UnknownModelError(f"no model {asked}; expected {model['name']} or {ALIAS}")
    return name


def server_metadata() -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": "msmlp", "version": "1", "extensions": EXTENSIONS}


def model_metadata(service: Service, name: str) -> dict[str, Any]:
    """`GET /v2/models/{name}`."""
    shapes = _shapes(service)

    def tensors(kinds: dict[str, str]) -> list[dict[str, Any]]:
        return [{"name": n, "datatype": d, "shape": [-1, *shapes.get(n, [])]} for n, d in kinds.items()]

    return {
        "name": name,
        "versions": [service.facts.model["version"]],
        "platform": "msmlp",
        "inputs": tensors(INPUTS),
        "outputs": tensors(OUTPUTS),
    }


def model_configuration(service: Service, name: str) -> dict[str, Any]:
    """`GET /v2/models/{name}/config`, in Triton's form: dimensions without the batch."""
    shapes = _shapes(service)

    def tensors(kinds: dict[str, str], **more: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": n,
                "data_type": "TYPE_STRING" if d == "BYTES" else f"TYPE_{d}",
                "dims": shapes.get(n, []),
                **more,
            }
            for n, d in kinds.items()
        ]

    return {
        "name": name,
        "platform": "msmlp",
        "backend": "msmlp",
        "max_batch_size": service.max_images,
        "input": tensors(INPUTS, optional=True),  # one of the two
        "output": tensors(OUTPUTS),
    }


async def model_statistics(service: Service, name: str) -> dict[str, Any]:
    """`GET /v2/models/{name}/stats`: counts and times since the start."""
    statistics, executions = await service.counts()
    return {"model_stats": [statistics.document(name, service.facts.model["version"], executions)]}


def repository_index(service: Service, *, ready_only: bool) -> list[dict[str, Any]]:
    """The one model, in Triton's form; none when only ready models are asked for and it is not."""
    try:
        service.check_any_ready()
    except MsmlpError as error:
        return [] if ready_only else [{**service.facts.model, "state": "UNAVAILABLE", "reason": str(error)}]
    return [{**service.facts.model, "state": "READY"}]


def response_head(service: Service, name: str, inference_id: str | None, record: RequestRecord) -> dict[str, Any]:
    """An inference response without its outputs; `name` is the model's as the request had it."""
    point = record.point
    assert point is not None  # since it was admitted
    named = {"operating_point": point.name} if point.name else {}
    return {
        "model_name": name,
        "model_version": service.facts.model["version"],
        "id": inference_id or record.request_id,
        "parameters": {**named, "source": point.source},
    }


def _shapes(service: Service) -> dict[str, list[int]]:
    """Dimensions of one image's tensors, where they have any."""
    # Pixels of any size are scaled; where some need not be, clients should know that size.
    size = service.weights.manifest.views.plain or -1
    return {"pixels": [size, size, 3], "probabilities": [len(service.facts.classes)]}
