"""`POST /classify`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from service.answers import answer_document, server_timing
from service.body import RAW_TYPES, read_body
from service.decoding import decode_images
from service.options import parse_options
from service.schemas import CLASSIFY_PARAMETERS, PROBLEMS, Answer
from service.state import Service, service_of

router = APIRouter()

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}
_JSON = {
    "schema": {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
    }
}


@router.post(
    "/classify",
    response_model=Answer,
    responses=PROBLEMS,
    openapi_extra={
        "parameters": CLASSIFY_PARAMETERS,
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys(RAW_TYPES, _BINARY),
                "multipart/form-data": _FORM,
                "application/json": _JSON,
            },
        },
    },
)
async def classify(request: Request, service: Annotated[Service, Depends(service_of)]) -> JSONResponse:
    """Classify one image or several; options go into the query, form fields or the JSON body."""
    arrival: float = request.scope["msmlp_arrival"]
    request_id: str = request.scope["msmlp_request_id"]
    service.check_ready()  # before a body is read for nothing
    settings = service.settings
    body = await read_body(
        request, max_bytes=settings.max_body_bytes, max_images=min(settings.max_images, settings.capacity)
    )
    options = parse_options(body.options)
    plan = service.policy.plan(options)
    with service.places(len(body.images)):
        started = time.monotonic()
        size = service.weights.manifest.cascade.image_size
        pixels = await decode_images(body.images, size, settings.max_pixels, service.decoders)
        decode_seconds = time.monotonic() - started
        result = await service.engine.classify(pixels, plan.thresholds, min_exit=plan.min_exit, max_exit=plan.max_exit)
    service.metrics.answered(result, service.gflops, arrival)
    document = answer_document(
        request_id=request_id,
        model=service.model,
        classes=service.weights.manifest.classes,
        gflops=service.gflops,
        plan=plan,
        result=result,
        top_k=options.top_k or 5,
        arrival=arrival,
        throughput=service.engine.throughput.per_second(time.monotonic()),
    )
    return JSONResponse(document, headers={"Server-Timing": server_timing(decode_seconds, result)})
