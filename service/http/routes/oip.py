"""The Open Inference Protocol over REST, under `/v2`."""

import asyncio
import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from msmlp.model.errors import OptionError
from msmlp.service.engine.async_engine import DOWN
from msmlp.service.errors import EngineDownError, MalformedBodyError
from msmlp.service.http.body import SLICE, read_content
from msmlp.service.http.routes.responses import Sent, while_connected
from msmlp.service.inference import Call, Outcome, run
from msmlp.service.oip.model import server_metadata
from msmlp.service.oip.request import Inference, decompress, read_inference
from msmlp.service.oip.response import write_response
from msmlp.service.oip.service import (
    answer_head,
    answer_tensors,
    check_model,
    configuration,
    limits,
    metadata,
    repository_index,
    statistics,
)
from msmlp.service.options import parse_options
from msmlp.service.service import Service, service_of
from msmlp.service.telemetry.record import Account

HEADER_LENGTH = "Inference-Header-Content-Length"
MODEL, VERSION = "/models/{name}", "/models/{name}/versions/{version}"
INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")

router = APIRouter(prefix="/v2", include_in_schema=False)  # the protocol has its own; docs/oip.md says what is ours
ServiceDep = Annotated[Service, Depends(service_of)]


async def _known_model(service: ServiceDep, name: str, version: str | None = None) -> str:
    """The model's name as it was asked for; UnknownModelError for any other than the one served."""
    check_model(service, name, version)
    return name


KnownModel = Annotated[str, Depends(_known_model)]


@router.get("")
async def server() -> dict[str, Any]:
    """The server and the extensions of the protocol that it speaks."""
    return server_metadata()


@router.get("/health/live")
async def live(service: ServiceDep) -> dict[str, bool]:
    """Whether the process is worth keeping."""
    if service.engine.down:
        raise EngineDownError(DOWN)
    return {"live": True}


@router.get("/health/ready")
async def ready(service: ServiceDep) -> dict[str, bool]:
    """Whether requests are served now."""
    service.check_ready()
    return {"live": True, "ready": True}


@router.post("/repository/index")
async def index(request: Request, service: ServiceDep) -> list[dict[str, Any]]:
    """The models there are; `{"ready": true}` asks for those that answer requests now."""
    content = await read_content(request, SLICE)
    try:
        wanted = json.loads(bytes(content) or b"{}")
        ready_only = wanted.get("ready", False)
    except (ValueError, RecursionError, AttributeError):
        raise MalformedBodyError("the body is no JSON object; allowed: none, or with ready, true or false") from None
    if not isinstance(ready_only, bool):
        raise MalformedBodyError("ready is neither true nor false; allowed: true, false")
    return repository_index(service, ready_only=ready_only)


@router.get("/models/stats")
async def all_statistics(service: ServiceDep) -> dict[str, Any]:
    """What was served since the start."""
    return statistics(service, service.facts.model["name"])


@router.get(f"{MODEL}/stats")
@router.get(f"{VERSION}/stats")
async def model_statistics(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    """What was served since the start."""
    return statistics(service, name)


@router.get(f"{MODEL}/ready")
@router.get(f"{VERSION}/ready")
async def model_ready(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    """Whether the model answers requests now."""
    service.check_ready()
    return {"name": name, "ready": True}


@router.get(f"{MODEL}/config")
@router.get(f"{VERSION}/config")
async def model_configuration(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    """The model's configuration in Triton's form."""
    return configuration(service, name)


@router.get(MODEL)
@router.get(VERSION)
async def model_metadata(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    """The model's tensors."""
    return metadata(service, name)


@router.post(f"{MODEL}/infer")
@router.post(f"{VERSION}/infer")
async def infer(request: Request) -> Response:
    """Classify images given as tensors; the options of `POST /classify` are request parameters."""
    service = await service_of(request)
    name = await _known_model(service, **request.path_params)
    service.check_ready()  # before a body is read for nothing
    inference = await _read(request, service)
    options = parse_options(inference.options)
    if options.stream:
        raise OptionError("stream", "this protocol has no streams over HTTP, POST /classify has; allowed: false")
    call = Call(inference.images, options, request.scope["msmlp_account"])
    outcome = await while_connected(request, run(service, call))
    return _answer(service, name, inference, outcome, call.account)


async def _read(request: Request, service: Service) -> Inference:
    """The request taken apart: a small one here, a large one where it keeps nobody waiting."""
    headers, max_bytes = request.headers, service.settings.max_body_bytes
    content = await read_content(request, max_bytes)

    def take_apart() -> Inference:
        plain = decompress(content, headers.get("content-encoding", ""), max_bytes)
        return read_inference(plain, headers.get(HEADER_LENGTH), limits(service))

    # What comes after the JSON costs nothing where it is pixels, which stay where they are.
    length = headers.get(HEADER_LENGTH, "")
    text = int(length) if length.isdecimal() and len(length) < 8 else len(content)
    small = text <= SLICE and (len(content) <= SLICE or b'"pixels"' in content[:text])
    small = small and "content-encoding" not in headers
    return take_apart() if small else await asyncio.to_thread(take_apart)


def _answer(service: Service, name: str, inference: Inference, outcome: Outcome, account: Account) -> Response:
    tensors = answer_tensors(service, inference, outcome.result)
    body, header_length = write_response(
        answer_head(service, name, inference, outcome.inquiry),
        [(tensor, wanted.binary) for tensor, wanted in zip(tensors, inference.outputs, strict=True)],
    )
    if header_length is None:
        return Sent(body, "application/json", account)
    return Sent(body, "application/octet-stream", account, {HEADER_LENGTH.lower(): str(header_length)})
