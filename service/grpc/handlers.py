"""Every method that has one answer."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import grpc

from msmlp.model.errors import MsmlpError
from msmlp.service.grpc.calls import Refusal, accounted, new_account, refuse
from msmlp.service.grpc.inferences import infer_once
from msmlp.service.grpc.intake import Context, Intake
from msmlp.service.grpc.messages import METHODS, Method, parse
from msmlp.service.oip.model import server_metadata
from msmlp.service.oip.service import check_model, configuration, metadata, repository_index, statistics
from msmlp.service.service import Service
from msmlp.service.telemetry.record import Account

Answer = Callable[[Service, bytes, Account], Awaitable[Any]]
"""From a request's bytes to the response, with the account that is kept of it."""


def unary_handlers(service: Service, intake: Intake) -> dict[str, Any]:
    """By the methods' names."""
    said = {name: _handler(service, intake, name, _saying(METHODS[name], say)) for name, say in _SAID.items()}
    return {**said, "ModelInfer": _handler(service, intake, "ModelInfer", infer_once, check=service.check_ready)}


def _handler(
    service: Service, intake: Intake, name: str, answer: Answer, check: Callable[[], None] = lambda: None
) -> Any:
    """`check` raises what stands in the way, before a message is let in for nothing."""
    says_something = bool(METHODS[name].request.DESCRIPTOR.fields)

    async def handle(_: Any, context: Context) -> bytes:
        account = new_account(name, context)

        async def work() -> bytes:
            check()
            # Probes have an empty message, and need not wait for their turn to send it.
            async with intake.message(context) if says_something else nullcontext(b"") as content:
                response = await answer(service, content, account)
            written: bytes = response.SerializeToString()
            return written

        answered = await accounted(service.accounts, account, work())
        if isinstance(answered, Refusal):
            await refuse(context, answered)
            return b""
        return answered

    # To the client a unary call; but so it is ours when the message is let in.
    return grpc.stream_unary_rpc_method_handler(handle)


def _saying(method: Method, say: Callable[[Service, Any], dict[str, Any]]) -> Answer:
    async def answer(service: Service, content: bytes, account: Account) -> Any:
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
    return statistics(service, _known(service, request) if request.name else service.facts.model["name"])


def _repository_index(service: Service, request: Any) -> dict[str, Any]:
    return {"models": repository_index(service, ready_only=request.ready)}


_SAID: dict[str, Callable[[Service, Any], dict[str, Any]]] = {
    "ServerLive": lambda service, _: {"live": not service.engine.down},
    "ServerReady": lambda service, _: {"ready": _ready(service)},
    "ModelReady": _model_ready,
    "ServerMetadata": lambda service, _: server_metadata(),
    "ModelMetadata": lambda service, request: metadata(service, _known(service, request)),
    "ModelConfig": lambda service, request: {"config": configuration(service, _known(service, request))},
    "ModelStatistics": _statistics,
    "RepositoryIndex": _repository_index,
}
