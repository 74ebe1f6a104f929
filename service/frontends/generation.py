"""A generation: the front ends and engines that serve one version of the weights. They start and end together."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from msmlp.model.errors import CallerError, DeviceError, MsmlpError
from msmlp.service.engine.process.child import SIGNALS
from msmlp.service.engine.process.host import REAP_SECONDS, EngineHosts
from msmlp.service.frontends.board import Board
from msmlp.service.frontends.layout import Layout, divide
from msmlp.service.frontends.line import Counted, Ended, Failed, Finished, GiveBack
from msmlp.service.frontends.place import ATTEMPTS, LOOK_SECONDS, Place, Start
from msmlp.service.frontends.scrapes import Scrapes
from msmlp.service.keys import Keys
from msmlp.service.logs import in_force
from msmlp.service.settings import Settings

log = logging.getLogger("msmlp.supervisor")

ENGINE_SECONDS = 0.2
"""How long the engines may take to end once no front end is left; then they are killed."""

MOVES = 64
"""The most connections that a front end is asked to give back at a time."""

ASK_SECONDS = 5.0
"""How long front ends may take to do what is asked of all of them."""


@dataclass(frozen=True)
class Plan:
    """What a generation is made of.

    `engines` are not yet started; there are none if every front end has its own. `model` is its name and version.
    """

    layout: Layout
    engines: EngineHosts
    model: dict[str, str]
    weights_bytes: int


def make_places(
    plan: Plan,
    settings: Settings,
    build: Callable[..., Any],
    target: Callable[[Start, socket.socket], None],
    keys: Keys,
    first: int,
) -> list[Place]:
    """The places of a generation, numbered from `first`. See `supervisor.supervise` for `build` and `target`."""
    layout, logs, version = plan.layout, in_force(), plan.model["version"]
    with_engine = {"engines": plan.engines.addresses} if plan.engines.all else {"share": layout.share}
    board, mine = Board(layout.frontends), partial(build, **with_engine)
    parts = enumerate(divide(settings, layout))
    return [Place(Start(i, part, mine, board, logs, version, keys=keys), target, first + i) for i, part in parts]


class Generation:
    """`fail` is told why it cannot go on, and `hear` what front ends say that is not for a generation.

    It is on `trial` until it serves: whoever dies then is not started again, and nothing of it counts.
    """

    def __init__(
        self, plan: Plan, places: list[Place], scrapes: Scrapes, hear: Callable[[Place, Any], None], *, trial: bool
    ) -> None:
        self.plan, self.places, self.hosts = plan, places, plan.engines
        self.trial = trial
        self.fail: Callable[[MsmlpError], None] = lambda error: None
        self._scrapes, self._hear = scrapes, hear
        self._turn, self._served = 0, False
        self.cut = self.killed = 0
        """Requests, and front ends that had some, that were ended before they were answered."""
        self.ending = False
        self.ended = asyncio.Event()
        """Whether no front end is left, and none will be started."""

    def start(self) -> None:
        self.hosts.start()
        for place in self.places:
            self._start(place)

    @property
    def warm(self) -> bool:
        """Whether all of it is ready."""
        return all(place.ready for place in self.places) and all(state == "up" for state in self.hosts.states)

    async def ask(self, what: str) -> bool:
        """Have all front ends do something → whether they have, in time."""
        lines = [place.line for place in self.places if place.line is not None]
        return all(await asyncio.gather(*(line.ask(what, ASK_SECONDS) for line in lines)))

    # Connections.

    @property
    def takes_connections(self) -> bool:
        return any(place.takes_connections for place in self.places)

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

    def even_out(self) -> None:
        """Ask front ends with more than their share of connections to give the excess back.

        Clients keep connections open for hours. When a front end dies, its clients come again before it is replaced, to
        the others, and would stay there.
        """
        places = [place for place in self.places if place.ready]
        if self.ending or len(places) < 2 or not all(place.settled for place in places):
            return
        found = sorted(((place.connections, place.index) for place in places), reverse=True)
        share, more = divmod(sum(connections for connections, _ in found), len(places))
        for rank, (connections, index) in enumerate(found):
            excess, line = connections - share - (rank < more), self.places[index].line
            if excess > 0 and line is not None:
                line.send(GiveBack(min(excess, MOVES)))

    # Processes.

    def _start(self, place: Place) -> None:
        if self.ending:
            return
        # The child inherits the mask: a Ctrl-C that comes before it can ignore the signal does no harm.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            place.start(serves=not self.trial)
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
        self._served = self._served or any(place.was_ready for place in self.places)
        if not self.ending:
            self._check_engines()

    def tell(self, message: Any) -> None:
        """Send it to all front ends."""
        for place in self.places:
            if place.line is not None:
                place.line.send(message)

    def _check_engines(self) -> bool:
        """Whether there are engines; on trial, whether all of them are well."""
        out = self.hosts.all_out or (self.trial and bool(self.hosts.lost))
        if out:
            self.fail(DeviceError(f"the engine stopped: {self.hosts.lost}"))
        return not out

    def _heard(self, place: Place, message: Any) -> None:
        if isinstance(message, Counted):
            if not self.trial:
                self._scrapes.totals.update(place.number, message.snapshot)
        elif isinstance(message, Failed):
            place.failure = message
        elif isinstance(message, Finished):
            self.cut += message.cut
        elif isinstance(message, Ended):
            self._bury(place)
        else:
            self._hear(place, message)

    def _bury(self, place: Place) -> None:
        served = place.was_ready or place.ready  # it may have been ready since the last look
        how, failure = place.bury(), place.failure
        self._scrapes.totals.retire(place.number)
        if self.ending:
            self.killed += not self.trial and served and place.status != 0
            self._note_end()
        elif failure is not None and failure.by_caller and not self._served:
            self.fail(CallerError(failure.detail))
        elif self._check_engines():
            self._start_again(place, how)

    def _start_again(self, place: Place, how: str) -> None:
        if self.trial:
            self.fail(DeviceError(f"front end {place.index} died: {how}"))
            return
        wait = place.next_start()
        if wait is not None:
            log.error("front end %d died: %s; restart in %g s", place.index, how, wait)
            self._scrapes.restarts += 1
            asyncio.get_running_loop().call_later(wait, self._start, place)
            return
        log.error("front end %d died: %s; it failed %d times in a row and is given up", place.index, how, ATTEMPTS)
        if all(each.gone for each in self.places):
            self.fail(DeviceError(f"the engine stopped: {how}"))

    # The end.

    def retire(self) -> None:
        """Start no front end any more; those without anything in flight are killed."""
        self.ending = True
        for place in self.places:
            if not (place.running and (place.ready or place.was_ready)):
                place.kill()
        self._note_end()

    def _note_end(self) -> None:
        if all(each.process is None for each in self.places):
            self.ended.set()

    def kill(self) -> None:
        """All front ends; engines end once none is left."""
        for place in self.places:
            place.kill()

    async def end(self) -> None:
        """Leave no process."""
        self.ending = True
        self.kill()
        self._note_end()
        try:
            async with asyncio.timeout(REAP_SECONDS):
                await self.ended.wait()
        except TimeoutError:
            log.error("the system has not ended all front ends within %g s", REAP_SECONDS)
        finally:
            for place in self.places:
                if place.process is not None:
                    self._bury(place)
            self.hosts.stop()
            await asyncio.to_thread(self.hosts.join, ENGINE_SECONDS)
            self._scrapes.forget(self.places)
            self.ended.set()
