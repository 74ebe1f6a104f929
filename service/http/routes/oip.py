"""The Open Inference Protocol over REST, under `/v2`."""

import asyncio
import re
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from msmlp.model.errors import OptionError
from msmlp.service.errors import BodyTooLargeError, MalformedBodyError
from msmlp.service.http.body import SLICE, read_content
from msmlp.service.http.responses import Sent, ServiceDep, parsed, service_of, while_connected
from msmlp.service.inference import ClassifyRequest, run
from msmlp.service.oip import model
from msmlp.service.oip.request import Inference, Limits, decompress, decompressed_size, read_inference
from msmlp.service.oip.response import output_tensors, write_response
from msmlp.service.service import Service

MODEL, VERSION = "/models/{name}", "/models/{name}/versions/{version}"
INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")

_TRUE, _FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")


class _Index(msgspec.Struct, frozen=True):
    ready: msgspec.Raw = _FALSE


_INDEX = msgspec.json.Decoder(_Index)

router = APIRouter(prefix="/v2", include_in_schema=False)  # the protocol has its own; docs/oip.md describes ours


async def _known_model(service: ServiceDep, name: str, version: str | None = None) -> str:
    """The model's name as the request has it; UnknownModelError for any other model."""
    return model.check_model(service, name, version)


KnownModel = Annotated[str, Depends(_known_model)]


@router.get("")
async def server() -> dict[str, Any]:
    return model.server_metadata()


@router.get("/health/live")
async def live(service: ServiceDep) -> dict[str, bool]:
    service.check_live()
    return {"live": True}


@router.get("/health/ready")
async def ready(service: ServiceDep) -> dict[str, bool]:
    service.check_any_ready()
    return {"live": True, "ready": True}


@router.post("/repository/index")
async def index(request: Request, service: ServiceDep) -> list[dict[str, Any]]:
    """The models; `{"ready": true}` asks for those that accept requests now."""
    content = await read_content(request, min(SLICE, service.settings.max_json_bytes))
    try:
        ready = _INDEX.decode(content or b"{}").ready
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise MalformedBodyError("expected no body, or a JSON object") from None
    if ready not in (_TRUE, _FALSE):
        raise MalformedBodyError("ready: expected true or false")
    return model.repository_index(service, ready_only=ready == _TRUE)


@router.get("/models/stats")
async def all_statistics(request: Request, service: ServiceDep) -> dict[str, Any]:
    return await while_connected(request, model.model_statistics(service, service.facts.model["name"]))


@router.get(f"{MODEL}/stats")
@router.get(f"{VERSION}/stats")
async def model_statistics(request: Request, service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    return await while_connected(request, model.model_statistics(service, name))


@router.get(f"{MODEL}/ready")
@router.get(f"{VERSION}/ready")
async def model_ready(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    service.check_any_ready()
    return {"name": name, "ready": True}


@router.get(f"{MODEL}/config")
@router.get(f"{VERSION}/config")
async def model_configuration(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    return model.model_configuration(service, name)


@router.get(MODEL)
@router.get(VERSION)
async def model_metadata(service: ServiceDep, name: KnownModel) -> dict[str, Any]:
    return model.model_metadata(service, name)


@router.post(f"{MODEL}/infer")
@router.post(f"{VERSION}/infer")
async def infer(request: Request) -> Response:
    """Classify images given as tensors; the options of `POST /classify` are request parameters."""
    service = await service_of(request)
    name = await _known_model(service, **request.path_params)
    service.check_ready()  # before the body is read
    settings, given = service.settings, request.headers.get(model.HEADER_LENGTH)
    length = int(given) if given and given.isdecimal() and len(given) < 20 else None
    if length is not None and length > settings.max_json_bytes:
        raise BodyTooLargeError(f"the JSON part has {length} bytes; at most {settings.max_json_bytes} are allowed")
    # Without the header all of it is JSON.
    max_bytes = settings.max_body_bytes if given else min(settings.max_body_bytes, settings.max_json_bytes)
    content, encoding = await read_content(request, max_bytes), request.headers.get("content-encoding", "")
    if encoding:
        size = decompressed_size(content, encoding, max_bytes)
        content = await parsed(request, "decompress", size, partial(decompress, content, encoding, max_bytes))
    with service.body_budget.holding(len(content) if encoding else 0):  # beside the bytes that came
        inference = await _read(request, service, content, given, length)
        del content  # images of a BYTES tensor are copies: while they wait, one is held, as is counted
        return await _answer(request, service, name, inference)


async def _answer(request: Request, service: Service, name: str, inference: Inference) -> Response:
    if inference.options.stream:
        raise OptionError("stream", "expected false: this protocol cannot stream over HTTP; use POST /classify")
    asked = ClassifyRequest(inference.images, inference.options, request.scope["msmlp_record"])
    result = await while_connected(request, run(service, asked))
    tensors = output_tensors(result, inference.outputs, service.facts)
    body, header_length = write_response(
        model.response_head(service, name, inference.id, asked.record),
        [(tensor, wanted.binary) for tensor, wanted in zip(tensors, inference.outputs, strict=True)],
    )
    if header_length is None:
        return Sent(body, "application/json", asked.record)
    return Sent(body, "application/octet-stream", asked.record, {model.HEADER_LENGTH.lower(): str(header_length)})


async def _read(request: Request, service: Service, content: bytes, given: str | None, length: int | None) -> Inference:
    """The request: a small one is read here, a large one in a thread, so that other requests do not wait.

    `length` is that of its JSON part, as far as what was `given` is one.
    """

    def read() -> Inference:
        return read_inference(content, given, Limits(service.max_images, service.settings.max_pixels))

    text = len(content) if length is None else length
    if text > SLICE:
        return await parsed(request, "inference", min(text, len(content)), read)
    # Pixels after the JSON cost nothing: they are not copied.
    small = len(content) <= SLICE or b'"pixels"' in content[:text]
    return read() if small else await while_connected(request, asyncio.to_thread(read))
