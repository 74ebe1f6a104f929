"""The supervisor: accepts connections and hands each to a front end; starts, watches and ends these processes."""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

from msmlp.model.errors import CallerError, DeviceError, MsmlpError
from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.errors import CutError
from msmlp.service.frontends.board import Board
from msmlp.service.frontends.layout import Layout, divide
from msmlp.service.frontends.line import Ask, Close, Counted, Cut, Drain, Ended, Failed, Finished
from msmlp.service.frontends.place import ATTEMPTS, LOOK_SECONDS, Place, Start
from msmlp.service.frontends.scrapes import Scrapes
from msmlp.service.logs import in_force
from msmlp.service.settings import Settings

log = logging.getLogger("msmlp.supervisor")

SIGNALS = signal.SIGINT, signal.SIGTERM

BACKLOG = 2048
"""Connections that may wait to be accepted."""

ACCEPTS = 64
"""Connections accepted per turn of the event loop."""

RETRY_SECONDS = 0.005
"""Until a connection is offered again that found no room with any front end."""

OUT_OF_FILES_SECONDS = 1.0
"""Until accepting is tried again when it cannot be done now."""

CUT_SECONDS = 1.0
"""How long front ends may take to refuse what they have not answered in time, and to end; then they are killed."""

ENGINE_SECONDS = 0.2
"""The same for engines, once no front end is left."""


def supervise(
    listener: socket.socket,
    settings: Settings,
    layout: Layout,
    build: Callable[..., Any],
    engines: EngineHosts,
    target: Callable[[Start, socket.socket], None],
) -> None:
    """Serve with front ends until SIGINT or SIGTERM. Closes the listening socket first of all.

    `build` makes the service of a front end; it crosses pickled, to `target`, which runs that. `engines` are not yet
    started; there are none if every front end has its own.

    Raises:
        CallerError: what a front end found that only the caller can change.
        DeviceError: no front end is left.
        CutError: requests were still in flight `--shutdown-seconds` after the signal, or when a second one came.
    """
    board, logs = Board(layout.frontends), in_force()
    build = partial(build, engines=engines.addresses) if engines.all else partial(build, share=layout.share)
    starts = [Start(index, mine, build, board, logs) for index, mine in enumerate(divide(settings, layout))]
    places = [Place(start, target) for start in starts]
    # Before the signals are blocked, as it would unblock them.
    resource_tracker.ensure_running()
    asyncio.run(Supervisor(listener, settings, places, engines, Scrapes(places, engines)).run())


class Supervisor:
    def __init__(
        self, listener: socket.socket, settings: Settings, places: list[Place], hosts: EngineHosts, scrapes: Scrapes
    ) -> None:
        listener.setblocking(False)
        self._listener, self._places, self._hosts, self._scrapes = listener, places, hosts, scrapes
        self._drain_seconds, self._shutdown_seconds = settings.drain_seconds, settings.shutdown_seconds
        self._held: socket.socket | None = None
        self._accepting = self._paused = False
        self._turn = 0
        self._leaving = self._closed = False  # no process is started any more; no connection is accepted
        self._cut = self._killed = 0  # requests, and front ends that had some

    async def run(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[float] = loop.create_future()  # until it has drained, in seconds
        self._hurry, self._all_ended = asyncio.Event(), asyncio.Event()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            self._hosts.start()
            for place in self._places:
                self._start(place)
            self._look()
            await self._drain(await self._over)
        finally:
            await self._end()
        if self._cut or self._killed:
            lost = f"requests that were cut: {self._cut}; front ends that were killed: {self._killed}"
            raise CutError(f"the service ended before all was answered; {lost}")
        log.info("ended: all was answered")

    def _on_signal(self, number: signal.Signals) -> None:
        """End in order; a second signal ends at once."""
        if self._over.done():
            self._hurry.set()
        else:
            # Who presses Ctrl-C waits for it, and no load balancer is to be told.
            self._over.set_result(self._drain_seconds if number == signal.SIGTERM else 0)

    # Connections.

    def _accept_now(self, *, wanted: bool) -> None:
        if wanted != self._accepting and not self._closed:
            self._accepting = wanted
            if wanted:
                self._loop.add_reader(self._listener, self._accept)
            else:
                self._loop.remove_reader(self._listener)

    def _accept(self) -> bool:
        """Accept what waits, and hand it over → whether there may be more."""
        for _ in range(ACCEPTS):
            try:
                connection = self._held or self._listener.accept()[0]
            except OSError as error:  # nothing waits, or the one that did has left
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no connection can be accepted for %g s: %s", OUT_OF_FILES_SECONDS, error.strerror)
                    self._pause(OUT_OF_FILES_SECONDS)
                return False
            self._held = None
            if not self._hand_over(connection):
                self._held = connection
                self._pause(RETRY_SECONDS)
                return False
        return True

    def _pause(self, seconds: float) -> None:
        self._paused = True
        self._accept_now(wanted=False)
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = False
        self._accept_if_any_runs()

    def _accept_if_any_runs(self) -> None:
        """Until a front end runs, connections wait in the backlog."""
        if not self._paused:
            self._accept_now(wanted=any(place.takes_connections for place in self._places))
            if self._accepting and self._held is not None:
                self._accept()

    def _hand_over(self, connection: socket.socket) -> bool:
        """Give a connection to the ready front end with the fewest, or to one that says why it is not ready."""
        places = [place for place in self._places if place.ready]
        places = places or [place for place in self._places if place.takes_connections]
        number = len(self._places)
        # Among equals they take turns.
        for place in sorted(places, key=lambda p: (p.connections, (p.index - self._turn) % number)):
            if place.hand_over(connection):
                self._turn = place.index + 1
                connection.close()
                return True
        return False

    # Processes.

    def _start(self, place: Place) -> None:
        if self._leaving:
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

    def _look(self) -> None:
        for place in self._places:
            if place.process is not None and place.hangs():
                log.error("front end %d does not respond: it is killed, and its connections are reset", place.index)
                place.say_where()
                self._loop.call_later(LOOK_SECONDS, place.kill)
        self._accept_if_any_runs()
        if not self._leaving:
            self._check_engines()
        self._loop.call_later(LOOK_SECONDS, self._look)

    def _check_engines(self) -> bool:
        """Whether there are engines; without any the service ends."""
        if self._hosts.all_out:
            self._fail(DeviceError(f"the engine stopped: {self._hosts.lost}"))
        return not self._hosts.all_out

    def _heard(self, place: Place, message: Any) -> None:
        if isinstance(message, Ask):
            self._scrapes.answer(place, message)
        elif isinstance(message, Counted):
            self._scrapes.totals.update(place.index, message.snapshot)
        elif isinstance(message, Failed):
            place.failure = message
        elif isinstance(message, Finished):
            self._cut += message.cut
        elif isinstance(message, Ended):
            self._bury(place)

    def _bury(self, place: Place) -> None:
        how, failure = place.bury(), place.failure
        self._scrapes.totals.retire(place.index)
        if self._leaving:
            self._killed += place.was_ready and place.status != 0
            if all(each.process is None for each in self._places):
                self._all_ended.set()
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
            self._loop.call_later(wait, self._start, place)
            return
        log.error("front end %d died: %s; it failed %d times in a row and is given up", place.index, how, ATTEMPTS)
        if all(each.gone for each in self._places):
            self._fail(DeviceError(f"the engine stopped: {how}"))

    def _fail(self, error: MsmlpError) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    # The end.

    async def _drain(self, seconds: float) -> None:
        """Go on for some seconds though not ready, so that nobody sends any more when the end comes."""
        self._leaving = True
        self._tell(Drain())
        if seconds:
            log.info("draining: not ready any more, and answering for %g s", seconds)
            await self._until_ended(seconds)

    async def _end(self) -> None:
        """Stop listening, let front ends answer what is in flight, cut what is left, and leave no process."""
        self._leaving = True
        for _ in range(BACKLOG // ACCEPTS):
            if not self._accept():
                break
        self._accept_now(wanted=False)
        self._closed = True
        self._listener.close()
        if self._held is not None:
            self._held.close()
        log.info("shutting down: requests in flight have %g s", self._shutdown_seconds)
        for place in self._places:
            if not (place.running and (place.ready or place.was_ready)):
                place.kill()  # nothing is in flight
        try:
            self._tell(Close())
            await self._until_ended(self._shutdown_seconds)
            self._hurry.clear()
            self._tell(Cut())
            await self._until_ended(CUT_SECONDS)
        finally:
            for place in self._places:
                place.kill()
                if place.process is not None:
                    self._bury(place)
            self._hosts.stop()
            await asyncio.to_thread(self._hosts.join, ENGINE_SECONDS)

    def _tell(self, message: Any) -> None:
        for place in self._places:
            if place.line is not None:
                place.line.send(message)

    async def _until_ended(self, seconds: float) -> None:
        """Until no front end is left, some seconds are over, or somebody is in a hurry."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._all_ended, self._hurry)]
        if any(place.process is not None for place in self._places):
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
