"""The engine processes that all front ends share, as the supervisor sees them."""

from collections.abc import Sequence

from msmlp.service.engine.process.host import EngineHost

STOP_SECONDS = 5.0
"""How long an engine may take to end once no front end is left."""


class Hosts:
    """None if every front end has its engine inside."""

    def __init__(self, hosts: Sequence[EngineHost]) -> None:
        self._hosts, self._started = hosts, list[EngineHost]()

    def start(self) -> None:
        """DeviceError if they cannot listen."""
        for host in self._hosts:
            host.start()
            self._started.append(host)

    @property
    def lost(self) -> str | None:
        """Why the last of them has ended for good; None while one lives or is started again."""
        if not self._hosts or not all(host.state == "out" for host in self._hosts):
            return None
        return next((host.died.detail for host in self._hosts if host.died is not None), "they ended")

    @property
    def states(self) -> list[str]:
        return [host.state for host in self._hosts]

    @property
    def pids(self) -> list[int]:
        return [pid for host in self._hosts if (pid := host.pid) is not None]

    @property
    def restarts(self) -> int:
        return sum(host.restarts for host in self._hosts)

    def __bool__(self) -> bool:
        return bool(self._hosts)

    def end(self) -> None:
        """End those that were started, and wait for that."""
        for host in self._started:
            host.stop()
        for host in self._started:
            host.join(STOP_SECONDS)
