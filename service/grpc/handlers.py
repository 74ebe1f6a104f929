"""The methods that have one response."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import grpc

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.grpc.calls import Refusal, new_record, read_request, recorded, refuse, response_to, unhurried
from msmlp.service.grpc.intake import Context, Intake
from msmlp.service.grpc.messages import METHODS, Method, ModelInferRequest, parse
from msmlp.service.inference import run
from msmlp.service.oip.model import (
    check_model,
    model_configuration,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RequestRecord

Answer = Callable[[Service, bytes, RequestRecord], Awaitable[Any]]
"""From a request's bytes and its record to the response."""


def unary_handlers(service: Service, intake: Intake) -> dict[str, Any]:
    plain = {name: _handler(service, intake, name, _plain(METHODS[name], say)) for name, say in _PLAIN.items()}
    return {**plain, "ModelInfer": _handler(service, intake, "ModelInfer", _infer, check=service.check_ready)}


async def _infer(service: Service, content: bytes, record: RequestRecord) -> Any:
    message = await unhurried(len(content), lambda: parse(ModelInferRequest, content))
    inference, request = await read_request(service, message, len(content), record)
    if inference.options.stream:
        raise OptionError("stream", "expected false: ModelInfer sends one response; use ModelStreamInfer")
    return response_to(service, message.model_name, inference, record, await run(service, request))


def _handler(
    service: Service, intake: Intake, name: str, answer: Answer, check: Callable[[], None] = lambda: None
) -> Any:
    """`check` refuses a call before its message is read."""
    has_content = bool(METHODS[name].request.DESCRIPTOR.fields)

    async def handle(_: Any, context: Context) -> bytes:
        record = new_record(name, context)

        async def work() -> bytes:
            check()
            # Probes send an empty message, and need not wait for a turn.
            async with intake.message(context) if has_content else nullcontext(b"") as content:
                response = await answer(service, content, record)
            written: bytes = response.SerializeToString()
            return written

        answered = await recorded(service.records, record, work())
        if isinstance(answered, Refusal):
            await refuse(context, answered)
            return b""
        return answered

    # A unary call to the client; declared as a stream, so that the message is read when it is due.
    return grpc.stream_unary_rpc_method_handler(handle)


def _plain(method: Method, say: Callable[[Service, Any], dict[str, Any]]) -> Answer:
    async def answer(service: Service, content: bytes, record: RequestRecord) -> Any:
        return method.response(**say(service, parse(method.request, content)))

    return answer


def _ready(service: Service) -> bool:
    try:
        service.check_ready()
    except MsmlpError:
        return False
    return True


def _known(service: Service, request: Any) -> str:
    check_model(service, request.name, request.version or None)
    name: str = request.name
    return name


def _model_ready(service: Service, request: Any) -> dict[str, Any]:
    _known(service, request)
    return {"ready": _ready(service)}


def _statistics(service: Service, request: Any) -> dict[str, Any]:
    return model_statistics(service, _known(service, request) if request.name else service.facts.model["name"])


_PLAIN: dict[str, Callable[[Service, Any], dict[str, Any]]] = {
    "ServerLive": lambda service, _: {"live": not service.engine.down},
    "ServerReady": lambda service, _: {"ready": _ready(service)},
    "ModelReady": _model_ready,
    "ServerMetadata": lambda service, _: server_metadata(),
    "ModelMetadata": lambda service, request: model_metadata(service, _known(service, request)),
    "ModelConfig": lambda service, request: {"config": model_configuration(service, _known(service, request))},
    "ModelStatistics": _statistics,
    "RepositoryIndex": lambda service, request: {"models": repository_index(service, ready_only=request.ready)},
}
