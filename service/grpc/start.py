"""Starts the gRPC server if it is wanted; imports gRPC, an extra, only then."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module

from msmlp.model.errors import OptionError, install_hint
from msmlp.service.service import Service


def check_installed() -> None:
    """Raise OptionError when what `--grpc-port` needs is not installed."""
    try:
        import_module("msmlp.service.grpc.server")
    except ModuleNotFoundError as error:
        raise OptionError("--grpc-port", f"needs the package {error.name}: {install_hint('grpc')}") from None
    except FileNotFoundError as error:
        raise OptionError("--grpc-port", f"{error.filename} is missing: {install_hint('grpc')}") from None


@asynccontextmanager
async def grpc_beside(service: Service) -> AsyncIterator[None]:
    """Serves gRPC inside, if `--grpc-port` is set."""
    port = service.settings.grpc_port
    if port is None:
        yield
        return
    from msmlp.service.grpc.server import grpc_server

    async with grpc_server(service, port):
        yield
