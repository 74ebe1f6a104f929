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

from msmlp.model.errors import MsmlpError
from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.frontends.board import Board
from msmlp.service.frontends.generation import SIGNALS, Generation
from msmlp.service.frontends.layout import Layout, divide
from msmlp.service.frontends.place import LOOK_SECONDS, Place, Start
from msmlp.service.frontends.scrapes import Scrapes
from msmlp.service.keys import Keys, NewKeys
from msmlp.service.logs import in_force
from msmlp.service.settings import Settings

log = logging.getLogger("msmlp.supervisor")

ACCEPTS = 64
"""Connections accepted per turn of the event loop."""

RETRY_SECONDS = 0.005
"""Until a connection is offered again that found no room with any front end."""

OUT_OF_FILES_SECONDS = 1.0
"""Until accepting is tried again when it cannot be done now."""

DRAIN_SECONDS = 75.0
"""How long front ends may take to end: half a minute for requests, as much for the engine, and a margin."""


def supervise(
    listeners: list[socket.socket],
    settings: Settings,
    layout: Layout,
    build: Callable[..., Any],
    engines: EngineHosts,
    target: Callable[[Start, socket.socket], None],
    keys: Keys,
) -> None:
    """Serve with front ends until SIGINT or SIGTERM. Closes the listening sockets first of all.

    `build` makes the service of a front end; it crosses pickled, to `target`, which runs that. `engines` are not yet
    started; there are none if every front end has its own.

    Raises:
        CallerError: what a front end found that only the caller can change.
        DeviceError: no front end is left.
    """
    board, logs = Board(layout.frontends), in_force()
    build = partial(build, engines=engines.addresses) if engines.all else partial(build, share=layout.share)
    starts = [Start(index, mine, build, board, logs, keys) for index, mine in enumerate(divide(settings, layout))]
    places = [Place(start, target) for start in starts]
    # Before the signals are blocked, as it would unblock them.
    resource_tracker.ensure_running()
    asyncio.run(Supervisor(listeners, places, engines, Scrapes(places, engines), keys).run())


class Supervisor:
    def __init__(
        self, listeners: list[socket.socket], places: list[Place], hosts: EngineHosts, scrapes: Scrapes, keys: Keys
    ) -> None:
        for listener in listeners:
            listener.setblocking(False)
        self._listeners, self._keys = listeners, keys
        self._generation = Generation(places, hosts, scrapes, self._fail)
        self._held: socket.socket | None = None
        self._accepting = self._paused = False
        self._stopping = False

    async def run(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            self._generation.start()
            self._keys.watch(lambda new: loop.call_soon_threadsafe(self._tell, new))
            self._look()
            await self._over
        finally:
            await self._end()

    def _on_signal(self, number: signal.Signals) -> None:
        """End in order; a second SIGINT ends immediately."""
        if self._stopping and number == signal.SIGINT:
            self._generation.kill()
        elif not self._over.done():
            self._over.set_result(None)

    # Connections.

    def _accept_now(self, *, wanted: bool) -> None:
        if wanted != self._accepting and not self._stopping:
            self._accepting = wanted
            for listener in self._listeners:
                if wanted:
                    self._loop.add_reader(listener, self._accept, listener)
                else:
                    self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept what waits, and hand it over."""
        for _ in range(ACCEPTS):
            try:
                connection = self._held or listener.accept()[0]
            except OSError as error:  # nothing waits, or the one that did has left
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no connection can be accepted for %g s: %s", OUT_OF_FILES_SECONDS, error.strerror)
                    self._pause(OUT_OF_FILES_SECONDS)
                return
            self._held = None
            if not self._generation.hand_over(connection):
                self._held = connection
                self._pause(RETRY_SECONDS)
                return

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
            self._accept_now(wanted=self._generation.takes_connections)
            if self._accepting and self._held is not None:
                self._accept(self._listeners[0])

    # Processes.

    def _tell(self, new: NewKeys) -> None:
        self._generation.tell(new)

    def _look(self) -> None:
        self._generation.look()
        self._accept_if_any_runs()
        self._loop.call_later(LOOK_SECONDS, self._look)

    def _fail(self, error: MsmlpError) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    # The end.

    async def _end(self) -> None:
        """Stop listening, let front ends answer what is in flight, and leave no process."""
        self._accept_now(wanted=False)
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        if self._held is not None:
            self._held.close()
        self._generation.drain()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._generation.ended.wait()
        except TimeoutError:
            log.error("front ends did not end within %g s: they are killed", DRAIN_SECONDS)
        finally:
            await self._generation.end()
