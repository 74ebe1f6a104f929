"""A real server process: uvicorn around the app, ended when the engine cannot start."""

import logging
import signal
import sys
from types import FrameType

import uvicorn

from model.errors import DeviceError
from service.app import create_app
from service.engine.messages import Died, Outbound
from service.settings import Settings
from service.state import Service, build_service

GRACE_SECONDS = 30


class _Server(uvicorn.Server):
    """Readiness goes first on a signal, and an orderly end is exit status 0 (uvicorn would raise the signal again)."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second SIGINT does not wait for anyone."""
        self._service.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; what is in flight is answered first.

    Raises:
        CallerError: weights or settings that do not fit.
        DeviceError: the engine could not be built or warmed up.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    service = build_service(settings)
    server = _Server(
        service,
        uvicorn.Config(
            create_app(service),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=settings.log_level == "debug",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        ),
    )
    failures: list[str] = []

    def watch(message: Outbound) -> None:
        if isinstance(message, Died) and not server.should_exit:
            # A process without an engine is of no use: let whoever runs it start another.
            failures.append(message.detail)
            server.should_exit = True

    service.engine.watch(watch)
    server.run()
    if failures:
        raise DeviceError(f"the engine ended: {failures[0]}")
    if not server.started:
        raise DeviceError(f"could not listen on {settings.host}:{settings.port}")
