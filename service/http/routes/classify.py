"""`POST /classify`."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import problem
from msmlp.service.http.body import read_body
from msmlp.service.http.openapi import CLASSIFY_OPENAPI, CLASSIFY_RESPONSES
from msmlp.service.http.responses import Sent, parsed, service_of, while_connected
from msmlp.service.http.schemas import Answer
from msmlp.service.inference import ClassifyRequest, classify, stream
from msmlp.service.memory import free_frames
from msmlp.service.telemetry.record import RequestRecord

NDJSON = "application/x-ndjson"
Documents = AsyncGenerator[dict[str, Any], None]

PATH = re.compile("/classify")

router = APIRouter()


_documented: dict[str, Any] = {
    "response_model": Answer,
    "responses": CLASSIFY_RESPONSES,
    "openapi_extra": CLASSIFY_OPENAPI,
}


@router.post(PATH.pattern, **_documented)
@router.put(PATH.pattern, operation_id="put_classify", **_documented)  # curl -T
async def post_classify(request: Request) -> Response:
    """Classify one image or several; options go into the query, form fields or the JSON body."""
    service = await service_of(request)  # a FastAPI dependency would cost more than the answer's JSON
    service.check_ready()  # before the body is read
    settings = service.settings
    images, options = await read_body(
        request,
        max_bytes=settings.max_body_bytes,
        max_json_bytes=settings.max_json_bytes,
        max_images=service.max_images,
        parse=partial(parsed, request),
    )
    asked = ClassifyRequest(images, options, request.scope["msmlp_record"])
    if options.stream:
        documents = stream(service, asked)
        # What fails before the first line is an error with its own status.
        first = await while_connected(request, _next(documents))
        return _Streaming(first, documents, asked.record)
    document = await while_connected(request, classify(service, asked))
    return Sent(orjson.dumps(document), "application/json", asked.record)


async def _next(documents: Documents) -> dict[str, Any]:
    return await anext(documents)


class _Streaming(StreamingResponse):
    """Closes the documents with the response, wherever it ends: a client may leave before the second line."""

    def __init__(self, first: dict[str, Any], more: Documents, record: RequestRecord) -> None:
        super().__init__(_lines(first, more, record), media_type=NDJSON)
        self._more = more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._more):
            await super().__call__(scope, receive, send)


async def _lines(first: dict[str, Any], more: Documents, record: RequestRecord) -> AsyncIterator[bytes]:
    yield _line(first)
    try:
        async for document in more:
            yield _line(document)
    except MsmlpError as error:
        # The status has been sent already; the last line carries the error instead.
        record.status, document = problem(error, record.request_id)
        yield _line({**document, "final": True})
        free_frames(error)


def _line(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
