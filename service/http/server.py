"""`serve`: what is checked before anything starts, and then a supervisor with the processes that answer."""

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from msmlp.model.errors import OptionError, install_hint
from msmlp.service.certificate import Certificate
from msmlp.service.engine.process.group import ProcessWorker
from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.frontends.generation import Plan
from msmlp.service.frontends.line import Failed, Line
from msmlp.service.frontends.place import Start
from msmlp.service.frontends.supervisor import BACKLOG, supervise
from msmlp.service.grpc import check_installed
from msmlp.service.keys import Keys
from msmlp.service.logs import Logging
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings, option
from msmlp.service.telemetry.observers import trace_factory

log = logging.getLogger("msmlp.server")


def serve(settings: Settings, build: Callable[..., Service] = build_service) -> None:
    """Serve what `build` puts together until SIGINT or SIGTERM; requests in flight are answered before it returns.

    `build(settings)` makes a service. It crosses pickled to the front ends, and each calls it with `share=...` or
    `engines=...` as `build_service` has them.

    Raises:
        CallerError: weights, settings, device or address that do not fit, before anything starts.
        DeviceError: the engine could not be built or warmed up, or died.
    """
    Logging(settings.log_level, settings.log_format).begin()
    Certificate.of(settings.ssl_certfile, settings.ssl_keyfile)  # each front end reads it; it is checked here
    _check_ports(settings)
    keys = Keys(settings)
    if settings.grpc_port is not None:
        check_installed()
        # gRPC listens later, and does not say why it cannot.
        listen(settings.host, settings.grpc_port, "--grpc-port").close()
    if settings.traces:
        trace_factory()  # or say what is missing
    first = plan(settings, build)
    with ExitStack() as stack:
        listeners = [stack.enter_context(listen(settings.host, settings.port))]
        host, port = listeners[0].getsockname()[:2]
        log.info("%s", first.layout)
        log.info("serving %s on http%s://%s:%d", first.model["name"], "s" if settings.ssl_certfile else "", host, port)
        ports = {"grpc_port": stack.enter_context(_grpc_port(settings))}
        if settings.metrics_port is not None:
            listeners.append(stack.enter_context(listen(settings.host, settings.metrics_port, "--metrics-port")))
            ports["metrics_port"] = listeners[1].getsockname()[1]
            log.info("serving metrics on http://%s:%d/metrics", host, ports["metrics_port"])
        mine = settings.model_copy(update=ports)
        supervise(listeners, mine, first, partial(plan, mine, build), build, _front_end, keys)


def plan(settings: Settings, build: Callable[..., Service] = build_service) -> Plan:
    """What the supervisor needs to know of a service that `build` makes; each front end builds its own.

    Raises:
        CallerError: weights or settings that do not fit.
    """
    service = build(settings)
    worker, size = service.engine.worker, service.weights.nbytes
    engines = worker.hosts if isinstance(worker, ProcessWorker) else EngineHosts()
    return Plan(service.layout, engines, service.facts.model, size)


def _check_ports(settings: Settings) -> None:
    """OptionError for one port with two uses."""
    uses: dict[int, str] = {}
    for name in ("port", "grpc_port", "metrics_port"):
        port = getattr(settings, name)
        if port and uses.setdefault(port, name) != name:
            raise OptionError(option(name), f"{port} is already used by {option(uses[port])}; choose another")


def _front_end(start: Start, end: socket.socket) -> None:
    """The life of a front end, in its process. The supervisor does without the web packages that it needs."""
    try:
        from msmlp.service.http.front_end import live
    except ModuleNotFoundError as error:
        detail = f"serving needs the package {error.name}: {install_hint('serve')}"
        Line(end).send(Failed(detail, by_caller=True))
        return
    live(start, end)


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket (port 0: a free one); OptionError, naming `option`, when it cannot listen there."""
    try:
        listener = socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror or error)
        if error.errno == errno.EADDRINUSE:
            reason = f"the address is in use; choose another with {option}"
        raise OptionError(option, f"cannot listen on {host}:{port}: {reason}") from None
    # Connections inherit it; asyncio sets it only on sockets that name their protocol. Without it the body of an answer
    # waits for the client's delayed acknowledgement of the headers: 40 ms on a kept connection.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@contextmanager
def _grpc_port(settings: Settings) -> Iterator[int | None]:
    """The port on which all front ends listen for gRPC. It is bound here, so that nobody else gets it in between."""
    if settings.grpc_port is None:
        yield None
        return
    with socket.socket(_family(settings.host)) as reserved:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            reserved.setsockopt(socket.SOL_SOCKET, option, 1)
        reserved.bind((settings.host, settings.grpc_port))
        yield reserved.getsockname()[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
