"""The supervisor: accepts connections and hands each to a front end; puts new weights in the place of the old."""

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

from msmlp.model.errors import MsmlpError
from msmlp.service.engine.process.child import SIGNALS
from msmlp.service.errors import CutError, DrainingError, ReloadingError
from msmlp.service.frontends.generation import Generation, Plan, make_places
from msmlp.service.frontends.line import Answer, Ask, Close, Cut, Drain, Line, Lost
from msmlp.service.frontends.place import LOOK_SECONDS, Place, Start
from msmlp.service.frontends.reload import explained, plan_beside, warm_up
from msmlp.service.frontends.scrapes import Scrapes
from msmlp.service.keys import Keys
from msmlp.service.settings import Settings

log = logging.getLogger("msmlp.supervisor")

BACKLOG = 2048
"""Connections that may wait to be accepted."""

ACCEPTS = 64
"""Connections accepted per turn of the event loop."""

RETRY_SECONDS = 0.005
"""Until a connection is offered again that found no room with any front end."""

OUT_OF_FILES_SECONDS = 1.0
"""Until accepting is tried again when it cannot be done now."""

EVEN_SECONDS = 1.0
"""Between two looks at how connections are spread over the front ends."""

CUT_SECONDS = 1.0
"""How long front ends may take to refuse what they have not answered in time, and to end; then they are killed."""


def supervise(
    listeners: list[socket.socket],
    settings: Settings,
    first: Plan,
    plan: Callable[[], Plan],
    build: Callable[..., Any],
    target: Callable[[Start, socket.socket], None],
    keys: Keys,
) -> None:
    """Serve `first` until SIGINT or SIGTERM, and after a reload what `plan` makes of the weights folder then.

    At the end it closes the listening sockets first of all.

    `build` makes the service of a front end; it crosses pickled, to `target`, which runs that.

    Raises:
        CallerError: what a front end found that only the caller can change.
        DeviceError: no front end is left.
        CutError: requests were still in flight `--shutdown-seconds` after the signal, or when a second one came.
    """

    def places(made: Plan, number: int) -> list[Place]:
        return make_places(made, settings, build, target, keys, number)

    # Before the signals are blocked, as it would unblock them.
    resource_tracker.ensure_running()
    asyncio.run(Supervisor(listeners, settings, first, plan, places, keys).run())


class Supervisor:
    """`places(plan, first)` makes the places of a generation, numbered from `first`."""

    def __init__(
        self,
        listeners: list[socket.socket],
        settings: Settings,
        first: Plan,
        plan: Callable[[], Plan],
        places: Callable[[Plan, int], list[Place]],
        keys: Keys,
    ) -> None:
        for listener in listeners:
            listener.setblocking(False)
        self._listeners = listeners
        self._drain_seconds, self._shutdown_seconds = settings.drain_seconds, settings.shutdown_seconds
        self._plan, self._places, self._keys = plan, places, keys
        made = places(first, 0)
        self._scrapes = Scrapes(made, first.engines)
        self._current = Generation(first, made, self._scrapes, self._heard, trial=False)
        self._current.fail = self._fail
        self._generations = [self._current]  # that have processes
        self._reloading: asyncio.Task[None] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._held: deque[socket.socket] = deque()
        self._accepting = self._paused = False
        self._closed = False  # no connection is accepted
        # A service started with SIGHUP ignored, as by nohup, keeps running when its terminal closes.
        self._hangs_up = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    async def run(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[float] = loop.create_future()  # until it has drained, in seconds
        self._hurry = asyncio.Event()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            self._current.start()
            self._keys.watch(lambda new: loop.call_soon_threadsafe(self._tell, new))
            self._look()
            self._even_out()
            await self._drain(await self._over)
        finally:
            await self._end()
        cut, killed = (sum(getattr(each, what) for each in self._ended) for what in ("cut", "killed"))
        if cut or killed:
            raise CutError(f"stopped before every request was answered ({cut} cut, {killed} front ends killed)")
        log.info("stopped; every request was answered")

    def _on_signal(self, number: signal.Signals) -> None:
        """End in order; a second signal ends at once. SIGHUP reloads, unless the terminal is gone."""
        if number == signal.SIGHUP and not (self._hangs_up and not has_terminal()):
            self._reload(lambda _: None)
        elif self._over.done():
            self._hurry.set()
        else:
            # Who presses Ctrl-C waits for it, and no load balancer is to be told.
            self._over.set_result(self._drain_seconds if number == signal.SIGTERM else 0)

    # Connections.

    def _accept_now(self, *, wanted: bool) -> None:
        if wanted != self._accepting and not self._closed:
            self._accepting = wanted
            for listener in self._listeners:
                if wanted:
                    self._loop.add_reader(listener, self._accept, listener)
                else:
                    self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept what waits, and hand it over → whether there may be more."""
        for _ in range(ACCEPTS):
            try:
                connection = self._held.popleft() if self._held else listener.accept()[0]
            except OSError as error:  # nothing waits, or the one that did has left
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no connection can be accepted for %g s: %s", OUT_OF_FILES_SECONDS, error.strerror)
                    self._pause(OUT_OF_FILES_SECONDS)
                return False
            if not self._current.hand_over(connection):
                self._held.appendleft(connection)
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
            self._accept_now(wanted=self._current.takes_connections)
            if self._accepting and self._held:
                self._accept(self._listeners[0])

    def _even_out(self) -> None:
        if not (self._paused or self._held):  # or what is given back would wait
            self._current.even_out()
        self._loop.call_later(EVEN_SECONDS, self._even_out)

    def _take_back(self, connection: socket.socket) -> None:
        """A connection that a front end gives back, because it retires or has more than its share."""
        if self._closed:
            connection.close()
            return
        self._held.append(connection)
        self._accept_if_any_runs()

    # Reloading.

    def _heard(self, place: Place, message: Any) -> None:
        if isinstance(message, socket.socket):
            self._take_back(message)
        elif isinstance(message, Lost):
            log.error("too many open files: a connection is lost")
        elif isinstance(message, Ask) and message.what == "reload":
            self._reload(partial(self._answer, place, place.line, message))
        elif isinstance(message, Ask):
            self._scrapes.answer(place, message)

    def _answer(self, place: Place, line: Line | None, ask: Ask, content: Any) -> None:
        if line is not None and place.line is line:  # who asked has not ended since
            line.send(Answer(ask.number, content))

    def _reload(self, tell: Callable[[Any], Any]) -> None:
        """Begin to; `tell` is called with a document on how it ended, or the error."""
        if self._over.done():
            tell(DrainingError("the service is shutting down"))
        elif self._reloading is not None:
            log.warning("the weights are already being loaded")
            tell(ReloadingError("the weights are already being loaded; try again when that has finished"))
        else:
            self._reloading = self._loop.create_task(self._replace(tell))

    async def _replace(self, tell: Callable[[Any], Any]) -> None:
        said: Any = DrainingError("the service is shutting down")
        try:
            said = await self._replaced()
            log.info("serving %(name)s %(version)s, after %(previous_version)s, loaded in %(seconds)g s", said)
            self._scrapes.reloads["done"] += 1
        except Exception as error:
            said, outcome = explained(error)
            log.error("the weights were not reloaded, the old ones stay in use: %s", said)
            self._scrapes.reloads[outcome] += 1
        finally:
            self._reloading = None
            tell(said)

    def _stop_reloading(self) -> None:
        if self._reloading is not None and not self._reloading.cancelling():
            self._reloading.cancel()

    async def _replaced(self) -> dict[str, Any]:
        """Put what the weights folder holds now in the place of what is served."""
        began, old = time.monotonic(), self._current
        if self._retiring is not None:
            await asyncio.shield(self._retiring)  # two are enough
        plan = await plan_beside(self._plan, old.plan)
        first = len(old.places) if old.places[0].number == 0 else 0
        new = Generation(plan, self._places(plan, first), self._scrapes, self._heard, trial=True)
        self._generations.append(new)
        try:
            await warm_up(new)
        except BaseException:
            await new.end()
            self._generations.remove(new)
            raise
        self._switch(new)
        await old.ask("retire")
        before = old.plan.model["version"]
        return {**plan.model, "previous_version": before, "seconds": round(time.monotonic() - began, 3)}

    def _switch(self, new: Generation) -> None:
        old, self._current = self._current, new
        new.trial, new.fail = False, self._fail
        self._scrapes.switch(new.places, new.hosts)
        old.retire()
        self._retiring = self._loop.create_task(self._see_off(old))

    async def _see_off(self, old: Generation) -> None:
        """Let an old generation answer what it has, which it cuts itself in the end."""
        try:
            async with asyncio.timeout(self._shutdown_seconds + CUT_SECONDS):
                await old.ended.wait()
        except TimeoutError:
            log.error("front ends with the old weights have not ended: they are killed")
        finally:
            await old.end()
            if old.cut:
                log.warning("requests with the old weights that were cut: %d", old.cut)
            self._generations.remove(old)
            self._retiring = None

    # Processes.

    def _tell(self, message: Any) -> None:
        for generation in self._generations:
            generation.tell(message)

    def _look(self) -> None:
        for generation in self._generations:
            generation.look()
        self._accept_if_any_runs()
        self._loop.call_later(LOOK_SECONDS, self._look)

    def _fail(self, error: MsmlpError) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    # The end.

    async def _drain(self, seconds: float) -> None:
        """Go on for some seconds though not ready, so that nobody sends any more when the end comes."""
        self._stop_reloading()
        for generation in self._generations:
            generation.ending = True
        self._tell(Drain())
        if seconds:
            log.info("draining: no longer ready, answering for another %g s", seconds)
            await self._until_ended(seconds)

    async def _end(self) -> None:
        """Stop listening, let front ends answer what is in flight, cut what is left, and leave no process."""
        self._stop_reloading()
        for listener in self._listeners:
            for _ in range(BACKLOG // ACCEPTS):
                if not self._accept(listener):
                    break
        self._accept_now(wanted=False)
        self._closed = True
        for listener in self._listeners:
            listener.close()
        for connection in self._held:
            connection.close()
        log.info("shutting down: requests in flight have %g s", self._shutdown_seconds)
        for generation in self._generations:
            generation.retire()
        try:
            self._tell(Close())
            await self._until_ended(self._shutdown_seconds)
            self._hurry.clear()
            self._tell(Cut())
            await self._until_ended(CUT_SECONDS)
        finally:
            self._ended = list(self._generations)
            await asyncio.gather(*(generation.end() for generation in self._ended))
            tasks = [task for task in (self._reloading, self._retiring) if task is not None]
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ended(self, seconds: float) -> None:
        """Until no front end is left, some seconds are over, or somebody is in a hurry."""

        async def all_ended() -> None:
            for generation in list(self._generations):
                await generation.ended.wait()

        waiting = [asyncio.ensure_future(each) for each in (all_ended(), self._hurry.wait())]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()


def has_terminal() -> bool:
    """Whether this process has a terminal that would hang up, not only one to write to."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False
