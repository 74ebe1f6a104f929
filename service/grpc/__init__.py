"""The Open Inference Protocol over gRPC. Only the modules in here know gRPC and protobuf, which are an extra."""

import os
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib import import_module

from msmlp.model.errors import OptionError, install_hint
from msmlp.service.service import Service

# Before gRPC is imported: else every failed TLS handshake, which any client can make, is a line on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def check_installed() -> None:
    """Raise OptionError when what `--grpc-port` needs is not installed."""
    try:
        import_module("msmlp.service.grpc.server")
    except ModuleNotFoundError as error:
        raise OptionError("--grpc-port", f"needs the package {error.name}: {install_hint('grpc')}") from None
    except FileNotFoundError as error:
        raise OptionError("--grpc-port", f"{error.filename} is missing: {install_hint('grpc')}") from None


def grpc_running(service: Service) -> AbstractAsyncContextManager[None]:
    """Serves gRPC inside, if `--grpc-port` is set."""
    port = service.settings.grpc_port
    if port is None:
        return nullcontext()
    from msmlp.service.grpc.server import grpc_server

    return grpc_server(service, port)
