"""Engines of a front end's own: their hosts, and the connections to them, as one Worker."""

import time
from collections.abc import Sequence
from dataclasses import replace

from msmlp.service.engine.messages import Died, Load, Outbound
from msmlp.service.engine.process.group import connected
from msmlp.service.engine.process.host import EngineHost, State
from msmlp.service.engine.process.remote import GONE
from msmlp.service.engine.transport import Send


class ProcessWorker:
    """Starts the engines of `hosts`, is their only front end, and ends them. See `RemoteWorker` for the rest."""

    def __init__(self, hosts: Sequence[EngineHost], send: Send, *, stages: int, size: int, ring_images: int) -> None:
        self.hosts, self._send = hosts, send
        addresses = [host.address for host in hosts]
        self._engines = connected(addresses, self._hear, stages=stages, size=size, ring_images=ring_images)
        self.ready, self.put, self.share = self._engines.ready, self._engines.put, self._engines.share

    def start(self) -> None:
        for host in self.hosts:
            host.start()
        self._engines.start()

    @property
    def load(self) -> Load | None:
        return self._engines.load

    @property
    def states(self) -> list[State]:
        return self._engines.states

    @property
    def pids(self) -> list[int]:
        """The engines' processes."""
        return [pid for host in self.hosts if (pid := host.pid) is not None]

    @property
    def restarts(self) -> int:
        return sum(host.restarts for host in self.hosts)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end that `Stop` asked for; engines that take longer than `timeout` are killed."""
        until = None if timeout is None else time.monotonic() + timeout
        self._engines.join(timeout)
        for host in self.hosts:
            host.stop()
            host.join(None if until is None else max(0.0, until - time.monotonic()))

    def _hear(self, messages: list[Outbound]) -> None:
        last = messages[-1]
        if isinstance(last, Died) and not last.restarting:
            for host in self.hosts:
                host.stop()
            known = next((host.died for host in self.hosts if host.died is not None), None)
            if last == GONE and known is not None:
                messages = [*messages[:-1], replace(last, detail=known.detail)]
        self._send(messages)
