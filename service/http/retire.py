"""How a front end gives connections back: all of them when it retires, some when it has more than its share."""

import asyncio
import random
from typing import TYPE_CHECKING

from msmlp.service.frontends.line import Line
from msmlp.service.http.watch import Watch

if TYPE_CHECKING:
    from msmlp.service.http.connection import Connection

RETRY_SECONDS = 0.005
"""Until a connection is given again that could not be: its client has not read all, or the supervisor has no room."""

CHOSEN_SECONDS = 1.0
"""How long a chosen connection may take to come between two requests; then it stays."""

LAST_SECONDS = 1.0
"""How long a connection over TLS may take to send its last request; then it is closed."""


class Returns:
    """Gives connections back once they are between two requests: some when asked (`give`), all after `begin`."""

    def __init__(self, watch: Watch, line: Line) -> None:
        self._watch, self._line = watch, line
        self._begun = False
        self._waiting: dict[Connection, None] = {}
        self._chosen: set[Connection] = set()
        self._due = False

    def begin(self) -> None:
        """Those that are idle go at once. It may be called again, for those that have come since."""
        self._begun, self._watch.between = True, self.take
        for connection in list(self._watch.open):
            if connection.between:
                self.take(connection)

    def give(self, number: int) -> None:
        """Give back `number` connections, chosen at random, so that idle and busy ones go in proportion. Those that are
        already on their way count; an earlier choice is dropped.
        """
        if self._begun or self._watch.leaving:
            return
        going = {each for each in self._watch.open if each in self._waiting or each.transport.is_closing()}
        found = [each for each in self._watch.open if each not in going and self._can_go(each)]
        chosen = self._chosen = set(random.sample(found, max(0, min(number - len(going), len(found)))))
        self._watch.between = self._take_chosen
        asyncio.get_running_loop().call_later(CHOSEN_SECONDS, self._give_no_more, chosen)
        for connection in list(chosen):
            if _secure(connection):
                chosen.discard(connection)
                connection.leave()  # its answer is the last here, and the client comes again
            elif connection.between:
                self._take_chosen(connection)

    def _can_go(self, connection: "Connection") -> bool:
        return connection.unanswered if _secure(connection) else not connection.seen.told

    def _take_chosen(self, connection: "Connection") -> None:
        if connection in self._chosen:
            self._chosen.discard(connection)
            if not connection.transport.get_write_buffer_size():  # its client reads
                self.take(connection)

    def _give_no_more(self, chosen: "set[Connection]") -> None:
        """Drop a choice: the counts behind it are out of date."""
        chosen.clear()
        if self._chosen is chosen and not self._begun:
            self._watch.between = None

    def take(self, connection: "Connection") -> None:
        """Read nothing more from one that is between two requests, and give it back as soon as its client has read."""
        if connection.seen.told:
            return  # it is being closed
        if _secure(connection):
            # What was agreed on in its handshake cannot be handed over. Its next request may be on its way already: it
            # is answered, and the answer says that it is the last.
            asyncio.get_running_loop().call_later(LAST_SECONDS, self._close, connection)
            return
        connection.transport.flush()  # an answer to HEAD may wait for its body
        connection.flow.pause_reading()
        self._waiting[connection] = None
        self._try_soon(0)

    def _close(self, connection: "Connection") -> None:
        if connection.between and connection.read:  # a request is on its way where none has come yet
            connection.shutdown()

    def _try_soon(self, seconds: float) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(seconds, self._try)

    def _try(self) -> None:
        self._due = False
        for connection in list(self._waiting):
            transport = connection.transport
            if not connection.between:  # it has closed, or the next request came in the same packet
                del self._waiting[connection]
                connection.flow.resume_reading()
            elif not transport.get_write_buffer_size():
                kept = connection.kept or connection.cycle is not None
                if not self._line.hand_over(transport.get_extra_info("socket"), kept=kept):
                    break
                del self._waiting[connection]
                transport.abort()  # closes only the copy here
        if self._waiting:
            self._try_soon(RETRY_SECONDS)


def _secure(connection: "Connection") -> bool:
    return connection.transport.get_extra_info("ssl_object") is not None
