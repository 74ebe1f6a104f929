"""gRPC's server, on the event loop of the web app, and its methods that have one response."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import grpc

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.certificate import Certificate
from msmlp.service.engine.messages import Ready
from msmlp.service.errors import BodyTooLargeError
from msmlp.service.grpc.calls import (
    SMALL_BYTES,
    Context,
    Intake,
    Refusal,
    enter,
    new_record,
    parsed,
    read_request,
    recorded,
    response_to,
    within,
)
from msmlp.service.grpc.messages import METHODS, SERVICE, Method, parse
from msmlp.service.grpc.streams import METHOD, stream_handler
from msmlp.service.inference import run
from msmlp.service.oip import model
from msmlp.service.service import Service
from msmlp.service.settings import Settings
from msmlp.service.telemetry.record import RequestRecord

log = logging.getLogger("msmlp.grpc")

HOLD_SECONDS = 0.05
"""How long calls are held before the server stops, and after. gRPC cancels a call that reaches a stopping server
before its client knows; who waits for a held one sends no other meanwhile, and the next one over another connection."""

LARGEST = 2**31 - 1
"""The largest message size that gRPC can count."""

OPTIONS = (
    # gRPC would probe how much a connection can carry, and let every call that waits for its turn send as much.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_concurrent_streams", 1024),
    # A client that is gone without a word is asked for a sign of life.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

OPEN = {"ServerLive", "ServerReady"}
"""Probes, which need no key."""

Answer = Callable[[Service, bytes, RequestRecord], Awaitable[Any]]
"""From a request's bytes and its record to the response."""


@asynccontextmanager
async def grpc_server(service: Service, port: int) -> AsyncIterator[None]:
    """Serves inside until `service.calls.closing`; on exit, calls in flight are answered first."""
    host, max_bytes = service.settings.host, service.settings.max_body_bytes
    # Front ends share the port; without, a second server on it would take half of the calls.
    several = int(service.others is not None)
    options = [*OPTIONS, *_times(service.settings), ("grpc.so_reuseport", several)]
    options.append(("grpc.max_allowed_incoming_connections", service.connections))
    server = grpc.aio.server(options=[*options, ("grpc.max_receive_message_length", min(max_bytes, LARGEST))])
    intake, calls = Intake(service), service.calls
    handlers = {**unary_handlers(service, intake), METHOD: stream_handler(service, intake)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    address = f"[{host}]" if ":" in host else host

    async def begin() -> None:
        if service.others is not None:
            await calls.opening.wait()
            await _ready_once(service)  # until then a call may go to a front end that can answer it
        bound = _bind(server, f"{address}:{port}", service.settings)
        await server.start()
        calls.listening.set()
        log.info("serving gRPC on %s:%d", address, bound)

    async def end() -> None:
        await calls.closing.wait()
        beginning.cancel()
        await asyncio.wait([beginning])
        calls.flowing.clear()
        await asyncio.sleep(HOLD_SECONDS)
        stopping = asyncio.create_task(server.stop(service.settings.shutdown_seconds))  # front ends cut what is left
        await asyncio.sleep(HOLD_SECONDS)
        calls.closed.set()
        calls.flowing.set()
        await stopping

    beginning, end_of_calls = asyncio.create_task(begin()), asyncio.create_task(end())
    beginning.add_done_callback(_log_failure)
    try:
        if service.others is None:
            await beginning
        yield
    finally:
        calls.closing.set()
        await end_of_calls


def _bind(server: grpc.aio.Server, address: str, settings: Settings) -> int:
    """The port that was bound, with TLS if there is a certificate."""
    certificate = Certificate.of(settings.ssl_certfile, settings.ssl_keyfile)
    if certificate is None:
        return server.add_insecure_port(address)
    used = certificate.watch().pair

    def renewed() -> Any:
        """Asked before every handshake; None: the one in use."""
        nonlocal used
        if certificate.pair is used:
            return None
        used = certificate.pair
        return grpc.ssl_server_certificate_configuration([used])

    first = grpc.ssl_server_certificate_configuration([used])
    return server.add_secure_port(address, grpc.dynamic_ssl_server_credentials(first, renewed))


def _times(settings: Settings) -> list[tuple[str, int]]:
    """How long a connection may be silent, before its first call and between calls."""
    limits = {
        "grpc.server_handshake_timeout_ms": settings.head_seconds,
        "grpc.max_connection_idle_ms": settings.keep_alive_seconds,
    }
    return [(name, max(1, round(1e3 * seconds))) for name, seconds in limits.items() if seconds]


def _log_failure(beginning: "asyncio.Task[None]") -> None:
    error = None if beginning.cancelled() else beginning.exception()
    if error is not None:
        log.error("gRPC cannot be served: %s", error)


async def _ready_once(service: Service) -> None:
    ready = asyncio.Event()
    service.engine.watch(lambda message: ready.set() if isinstance(message, Ready) else None)
    if not service.engine.up:
        await ready.wait()


def unary_handlers(service: Service, intake: Intake) -> dict[str, Any]:
    plain = {name: _handler(service, intake, name, _plain(METHODS[name], say)) for name, say in _PLAIN.items()}

    def check() -> None:
        service.check_ready()
        intake.knock()

    return {**plain, "ModelInfer": _handler(service, intake, "ModelInfer", _infer, check=check)}


async def _infer(service: Service, content: bytes, record: RequestRecord) -> Any:
    message = await parsed(service, content)
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
            if name not in OPEN:
                enter(service, context, record)
            check()
            # Probes send an empty message, and need not wait for a turn.
            async with intake.message(context) if has_content else nullcontext(b"") as content:
                response = await answer(service, content, record)
            written: bytes = response.SerializeToString()
            return written

        with service.calls.one():
            await service.calls.flowing.wait()
            answered = await recorded(service.records, record, within(service, work()))
            if isinstance(answered, Refusal):
                await answered.send(context)
                return b""
            return answered

    # A unary call to the client; declared as a stream, so that the message is read when it is due.
    return grpc.stream_unary_rpc_method_handler(handle)


def _plain(method: Method, say: Callable[[Service, Any], dict[str, Any] | Awaitable[dict[str, Any]]]) -> Answer:
    async def answer(service: Service, content: bytes, record: RequestRecord) -> Any:
        if len(content) > SMALL_BYTES:  # a name and a version
            raise BodyTooLargeError(f"the message has {len(content)} bytes; at most {SMALL_BYTES} are allowed")
        said = say(service, parse(method.request, content))
        return method.response(**(said if isinstance(said, dict) else await said))

    return answer


def _ready(service: Service) -> bool:
    try:
        service.check_any_ready()
    except MsmlpError:
        return False
    return True


def _known(service: Service, request: Any) -> str:
    return model.check_model(service, request.name, request.version or None)


def _model_ready(service: Service, request: Any) -> dict[str, Any]:
    _known(service, request)
    return {"ready": _ready(service)}


async def _statistics(service: Service, request: Any) -> dict[str, Any]:
    name = _known(service, request) if request.name else service.facts.model["name"]
    return await model.model_statistics(service, name)


_PLAIN: dict[str, Callable[[Service, Any], dict[str, Any] | Awaitable[dict[str, Any]]]] = {
    "ServerLive": lambda service, _: {"live": service.live},
    "ServerReady": lambda service, _: {"ready": _ready(service)},
    "ModelReady": _model_ready,
    "ServerMetadata": lambda service, _: model.server_metadata(),
    "ModelMetadata": lambda service, request: model.model_metadata(service, _known(service, request)),
    "ModelConfig": lambda service, request: {"config": model.model_configuration(service, _known(service, request))},
    "ModelStatistics": _statistics,
    "RepositoryIndex": lambda service, request: {"models": model.repository_index(service, ready_only=request.ready)},
}
