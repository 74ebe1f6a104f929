"""gRPC's server, on the event loop of the web app."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from msmlp.service.grpc.handlers import unary_handlers
from msmlp.service.grpc.intake import Intake
from msmlp.service.grpc.messages import SERVICE
from msmlp.service.grpc.streams import METHOD, stream_handler
from msmlp.service.service import Service

log = logging.getLogger("msmlp.grpc")

GRACE_SECONDS = 30
"""How long a stopping server waits for calls in flight, as the HTTP server does."""

LARGEST = 2**31 - 1
"""The largest message size that gRPC can count."""

OPTIONS = (
    ("grpc.so_reuseport", 0),  # or a second server on the port would take half of the calls
    # gRPC would probe how much a connection can carry, and let every call that waits for its turn send as much.
    ("grpc.http2.bdp_probe", 0),
)


@asynccontextmanager
async def grpc_server(service: Service, port: int) -> AsyncIterator[None]:
    """Serves inside; on exit, calls in flight are answered first."""
    host, max_bytes = service.settings.host, service.settings.max_body_bytes
    server = grpc.aio.server(options=[*OPTIONS, ("grpc.max_receive_message_length", min(max_bytes, LARGEST))])
    intake, ending = Intake(service.body_budget, max_bytes), asyncio.Event()
    handlers = {**unary_handlers(service, intake), METHOD: stream_handler(service, intake, ending)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    address = f"[{host}]" if ":" in host else host
    bound = server.add_insecure_port(f"{address}:{port}")
    await server.start()
    log.info("serving gRPC on %s:%d", address, bound)
    grace = 0
    try:
        yield
        grace = GRACE_SECONDS  # but none when the app is cut short, as by a second SIGINT
    finally:
        ending.set()
        await server.stop(grace)
