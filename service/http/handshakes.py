"""From an accepted socket to a connection: by a TLS handshake, if the service has a certificate."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from msmlp.model.errors import DeviceError, OptionError
from msmlp.service.certificate import Certificate
from msmlp.service.logs import Seldom
from msmlp.service.service import Service

log = logging.getLogger("msmlp.tls")

LONGEST = 60.0
"""Seconds of a handshake without `--head-seconds`."""


class Handshakes:
    """Of one process. Those under way count as connections; if there are too many, the oldest is cancelled."""

    def __init__(self, service: Service) -> None:
        """DeviceError: the certificate, which was sound when the service started, is not; it may be half renewed."""
        settings = service.settings
        try:
            self._certificate = Certificate.of(settings.ssl_certfile, settings.ssl_keyfile)
        except OptionError as error:
            raise DeviceError(str(error)) from None
        if self._certificate is not None:
            self._certificate.watch()
        self._seconds, self._plain_port = settings.head_seconds or LONGEST, settings.metrics_port
        self._most, self._failed = service.connections, service.metrics.handshakes_failed
        self._under_way: dict[asyncio.Task[Any] | None, None] = {}  # in the order in which they came
        self._odd = Seldom(log, logging.INFO)

    @property
    def secure(self) -> bool:
        return self._certificate is not None

    @property
    def number(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    async def connect(self, protocol: Callable[[], asyncio.Protocol], accepted: socket.socket, others: int) -> None:
        """Hand a socket to a new `protocol`, besides `others` that are open; OSError if nothing comes of it."""
        loop = asyncio.get_running_loop()
        if self._certificate is None or accepted.getsockname()[1] == self._plain_port:
            await loop.connect_accepted_socket(protocol, accepted)
            return
        task = asyncio.current_task()
        if self._under_way and len(self._under_way) + others >= self._most:
            oldest = next(iter(self._under_way))
            assert oldest is not None
            oldest.cancel()
        self._under_way[task] = None
        try:
            context, seconds = self._certificate.context, self._seconds
            await loop.connect_accepted_socket(protocol, accepted, ssl=context, ssl_handshake_timeout=seconds)
        except (ssl.SSLError, ConnectionAbortedError) as error:
            self._failed.inc()
            late = f"it took longer than {seconds:g} s"
            reason = (error.reason or "unknown").lower().replace("_", " ") if isinstance(error, ssl.SSLError) else late
            self._odd("a TLS handshake failed: %s", reason)
            raise
        finally:
            del self._under_way[task]
