"""The end of a front end's connections: they are told, idle ones are closed, and at last busy ones are cut."""

import time
from functools import partial
from http import HTTPStatus

from msmlp.service.calls import Calls
from msmlp.service.errors import CUT, DrainingError
from msmlp.service.http.connection import Connection
from msmlp.service.http.watch import Phase, Watch

FRESH_SECONDS = 0.25
"""How long a connection that has just come may take to send its first bytes: they may be on their way."""


class Ending:
    def __init__(self, watch: Watch, calls: Calls) -> None:
        self._watch, self._calls = watch, calls
        self._closed = 0.0

    def drain(self) -> None:
        """All is answered, but for the last time on its connection: a request must not cross with the close."""
        self._watch.leaving = True
        for connection in self._watch.open:
            connection.leave()

    def close(self) -> None:
        """Only what has been asked is answered from now on."""
        self.drain()
        self._closed = time.monotonic()
        self._calls.closing.set()

    @property
    def busy(self) -> bool:
        """Whether something is in flight; connections that have nothing are closed."""
        busy = [connection for connection in list(self._watch.open) if self._busy(connection)]
        return bool(busy) or self._calls.open > 0

    def _busy(self, connection: Connection) -> bool:
        if connection.phase is Phase.HEAD and not connection.read:
            idle = time.monotonic() - self._closed > FRESH_SECONDS
        else:
            idle = connection.phase is Phase.IDLE
        if idle:
            connection.transport.close()
        return not idle

    def cut(self) -> int:
        """Refuse what has no answer yet → how many requests that is. What remains `busy` then is not read."""
        cut = self._calls.open
        self._calls.cut()
        for connection in list(self._watch.open):
            if connection.seen.told:  # it has its answer, or is about to
                continue
            if connection.unanswered:
                cut += 1 + len(connection.pipeline)
                self._watch.ends(connection)
                connection.late(partial(DrainingError, CUT))
            elif connection.phase is Phase.HEAD and connection.read:
                cut += 1
                connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "draining", CUT)
        return cut

    @property
    def unread(self) -> int:
        """Answers that their clients have not got in full."""
        quiet = Phase.IDLE, Phase.HEAD
        return sum(not each.seen.told and each.phase not in quiet for each in self._watch.open)
