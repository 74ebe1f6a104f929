"""A generation: the front ends and engines that serve one version of the weights. They start and end together."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from msmlp.model.errors import CallerError, DeviceError, MsmlpError
from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.frontends.line import Ask, Counted, Drain, Ended, Failed
from msmlp.service.frontends.place import ATTEMPTS, LOOK_SECONDS, Place
from msmlp.service.frontends.scrapes import Scrapes

log = logging.getLogger("msmlp.supervisor")

SIGNALS = signal.SIGINT, signal.SIGTERM

ENGINE_SECONDS = 5.0
"""How long the engines may take to end once no front end is left."""


class Generation:
    """`fail` is told why it cannot go on. `hosts` are not yet started."""

    def __init__(
        self, places: list[Place], hosts: EngineHosts, scrapes: Scrapes, fail: Callable[[MsmlpError], None]
    ) -> None:
        self.places, self.hosts = places, hosts
        self._scrapes, self._fail = scrapes, fail
        self._turn = 0
        self.ending = False
        self.ended = asyncio.Event()
        """Whether no front end is left, and none will be started."""

    def start(self) -> None:
        self.hosts.start()
        for place in self.places:
            self._start(place)

    # Connections.

    @property
    def takes_connections(self) -> bool:
        return not self.ending and any(place.takes_connections for place in self.places)

    def hand_over(self, connection: socket.socket) -> bool:
        """Give a connection to the ready front end with the fewest, or to one that says why it is not ready."""
        places = [place for place in self.places if place.ready]
        places = places or [place for place in self.places if place.takes_connections]
        number = len(self.places)
        # Among equals they take turns.
        for place in sorted(places, key=lambda p: (p.connections, (p.index - self._turn) % number)):
            if place.hand_over(connection):
                self._turn = place.index + 1
                connection.close()
                return True
        return False

    # Processes.

    def _start(self, place: Place) -> None:
        if self.ending:
            return
        # The child inherits the mask: a Ctrl-C that comes before it can ignore the signal does no harm.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            place.start()
        except OSError as error:
            self._start_again(place, f"it could not be started: {error.strerror}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        assert place.line is not None
        place.line.open(partial(self._heard, place))

    def look(self) -> None:
        """Kill front ends that hang, and see whether there are engines; to be called every LOOK_SECONDS."""
        for place in self.places:
            if place.process is not None and place.hangs():
                log.error("front end %d does not respond: it is killed, and its connections are reset", place.index)
                place.say_where()
                asyncio.get_running_loop().call_later(LOOK_SECONDS, place.kill)
        if not self.ending:
            self._check_engines()

    def tell(self, message: Any) -> None:
        """Send it to all front ends."""
        for place in self.places:
            if place.line is not None:
                place.line.send(message)

    def _check_engines(self) -> bool:
        """Whether there are engines."""
        if self.hosts.all_out:
            self._fail(DeviceError(f"the engine stopped: {self.hosts.lost}"))
        return not self.hosts.all_out

    def _heard(self, place: Place, message: Any) -> None:
        if isinstance(message, Ask):
            self._scrapes.answer(place, message)
        elif isinstance(message, Counted):
            self._scrapes.totals.update(place.index, message.snapshot)
        elif isinstance(message, Failed):
            place.failure = message
        elif isinstance(message, Ended):
            self._bury(place)

    def _bury(self, place: Place) -> None:
        how, failure = place.bury(), place.failure
        self._scrapes.totals.retire(place.index)
        if self.ending:
            if all(each.process is None for each in self.places):
                self.ended.set()
            return
        if failure is not None and failure.by_caller:
            self._fail(CallerError(failure.detail))
        elif self._check_engines():
            self._start_again(place, how)

    def _start_again(self, place: Place, how: str) -> None:
        wait = place.next_start()
        if wait is not None:
            log.error("front end %d died: %s; restart in %g s", place.index, how, wait)
            self._scrapes.restarts += 1
            asyncio.get_running_loop().call_later(wait, self._start, place)
            return
        log.error("front end %d died: %s; it failed %d times in a row and is given up", place.index, how, ATTEMPTS)
        if all(each.gone for each in self.places):
            self._fail(DeviceError(f"the engine stopped: {how}"))

    # The end.

    def drain(self) -> None:
        """Let front ends answer what is in flight, and end; those without anything in flight are killed."""
        self.ending = True
        living = [place for place in self.places if place.process is not None]
        for place in living:
            if place.running and (place.ready or place.was_ready) and place.line is not None:
                place.line.send(Drain())
            else:
                place.kill()
        if not living:
            self.ended.set()

    def kill(self) -> None:
        """All front ends; engines end once none is left."""
        for place in self.places:
            place.kill()

    async def end(self) -> None:
        """Leave no process."""
        self.ending = True
        self.kill()
        for place in self.places:
            if place.process is not None:
                place.bury()
        self.hosts.stop()
        await asyncio.to_thread(self.hosts.join, ENGINE_SECONDS)
