"""A front end: a process that answers on the connections that the supervisor hands it."""

import asyncio
import faulthandler
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import uvicorn

from msmlp.model.errors import CallerError, MsmlpError, WeightsError
from msmlp.service.engine.messages import Died, Outbound, Ready
from msmlp.service.engine.process.child import begin
from msmlp.service.frontends.board import Board, Column, Others
from msmlp.service.frontends.line import (
    Answer,
    Ask,
    Close,
    Counted,
    Cut,
    Drain,
    Ended,
    Failed,
    Finished,
    GiveBack,
    Kept,
    Line,
    Lost,
)
from msmlp.service.frontends.place import WHERE, Start
from msmlp.service.http.app import UVICORN, create_app
from msmlp.service.http.ending import Ending
from msmlp.service.http.handshakes import Handshakes
from msmlp.service.http.retire import Returns
from msmlp.service.keys import NewKeys
from msmlp.service.logs import Seldom
from msmlp.service.service import Service
from msmlp.service.telemetry.observers import trace_factory
from msmlp.service.telemetry.totals import take_snapshot

log = logging.getLogger("msmlp.server")

BEAT_SECONDS = 0.1

CONNECTING_SECONDS = 0.001
"""Between two looks for connections that are about to be served."""

POLL_SECONDS = 0.02
"""How often it is seen what is still in flight at the end."""

LAST_SECONDS = 5.0
"""How long the last traces and lines of the access log may take once all is answered. Threads may still work for
clients that have left."""

FLUSH_SECONDS = 0.3
"""How long the last refusals may take to be sent."""

TELL_SECONDS = 0.2
"""How long the supervisor may take to read the last messages, with the last counts, before the process ends."""

BEATS_PER_PUSH = 10
"""Heartbeats between two snapshots that nobody asked for: what a front end counts before it is killed is not lost."""


def live(start: Start, end: socket.socket) -> None:
    """The life of a front end, whose supervisor has the other end of the socket. Does not return."""
    begin(start.logs)
    faulthandler.register(WHERE)
    line = Line(end)
    try:
        traces = trace_factory() if start.settings.traces else None
        service: Service = start.build(start.settings)
        service.others = Others(start.board, start.index, line)
        if start.version not in ("", service.facts.model["version"]):
            raise WeightsError("the weights folder has changed since the start; reload the service")
        if start.serves:
            service.calls.opening.set()
        if start.keys is not None:
            service.keys = start.keys
        if traces is not None:
            service.traces = traces(service.facts.model)
        FrontEnd(service, line, start.board, start.index).run()
        raise RuntimeError("it has ended by itself")
    except MsmlpError as error:
        failed = Failed(str(error), by_caller=isinstance(error, CallerError))
    except (Exception, SystemExit) as error:  # uvicorn's way to say that the app did not start
        log.exception("front end %d stopped", start.index)
        failed = Failed(f"unexpected {type(error).__name__}: {error}", by_caller=False)
    line.send(failed)
    os._exit(1)


class _Connections(set[Any]):
    """uvicorn's set of open connections, which says when one has left."""

    def __init__(self, left: Callable[[], None]) -> None:
        super().__init__()
        self._left = left

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._left()


class FrontEnd(uvicorn.Server):
    """uvicorn, without a listening socket and without signals: both are the supervisor's."""

    def __init__(self, service: Service, line: Line, board: Board, index: int) -> None:
        super().__init__(uvicorn.Config(create_app(service), **UVICORN))
        self.service = service
        self._failure = ""  # why the engine has died for good
        self._until = math.inf  # what is in flight may take
        self._line, self._board, self._index = line, board, index
        self._received = self._connecting = self._beats = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._no_memory = Seldom(log, logging.ERROR)
        self._handshakes = Handshakes(service)
        self._retiring = False
        self.server_state.connections = _Connections(self._count_left)
        service.engine.watch(self._hear_engine)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin without a listening socket."""
        await super().startup(sockets=[])
        asyncio.get_running_loop().set_exception_handler(self._failed)
        self._ending = Ending(self.lifespan.state["msmlp_watch"], self.service.calls)
        self._returns = Returns(self.lifespan.state["msmlp_watch"], self._line)
        self._line.open(self._heard)
        self._beat()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something that the event loop called. Without memory it was not done, or is tried again without a pause."""
        if not isinstance(context.get("exception"), MemoryError):
            loop.default_exception_handler(context)
        elif "transport" in context:  # only that connection is lost
            self._no_memory("there is no memory to read from a connection: it is closed")
        else:
            try:
                log.error("front end %d ends: there is no memory", self._index)
            finally:
                os._exit(1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is in flight while there is time, refuse the rest, and end the process."""
        cut = 0
        self._ending.close()
        if await self._in_time(lambda: not self._ending.busy):
            self._until = min(self._until, time.monotonic() + LAST_SECONDS)
            closing = asyncio.create_task(self.lifespan.shutdown())
            await self._in_time(closing.done)
        else:
            cut = self._ending.cut()
            self._until = time.monotonic() + FLUSH_SECONDS
            await self._in_time(lambda: not self._ending.busy)
            await asyncio.sleep(POLL_SECONDS)  # gRPC sends with threads of its own
            cut += self._ending.unread
        self._push()
        self._line.send(Failed(self._failure, by_caller=False) if self._failure else Finished(cut))
        self._until = time.monotonic() + TELL_SECONDS
        await self._in_time(lambda: self._line.idle)
        os._exit(1 if self._failure else 0)  # threads may be busy, and need not be waited for

    async def _in_time(self, done: Callable[[], bool]) -> bool:
        while not done():
            if time.monotonic() >= self._until:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _close(self, seconds: float) -> None:
        """Begin to end, within some seconds."""
        self._until = min(self._until, time.monotonic() + seconds)
        self.service.draining = self.should_exit = True
        self._show()

    def _beat(self) -> None:
        self._beats += 1
        self._board.put(self._index, Column.BEAT, self._beats)
        self._show()
        if self._beats % BEATS_PER_PUSH == 0 and self._line.idle:
            self._push()
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _push(self) -> None:
        self._line.send(Counted(take_snapshot(self.service.metrics, self.service.statistics)))

    def _hear_engine(self, message: Outbound) -> None:
        if isinstance(message, Died) and not message.restarting and not self.should_exit:
            # A process without an engine is useless: let the supervisor start another.
            self._failure = message.detail
            self._close(self.service.settings.shutdown_seconds)
        elif isinstance(message, Ready | Died):
            self._show()

    def _show(self) -> None:
        service, others = self.service, self.service.others
        assert others is not None
        self._board.put(self._index, Column.READY, service.engine.up and not self.should_exit)
        self._board.put(self._index, Column.LEAVING, self.should_exit)
        self._board.put(self._index, Column.RATE, service.own_images_per_second())
        self._count_left()  # a connection that changes its parser leaves and comes
        others.look()

    def _count_left(self) -> None:
        left = self._received - self._connecting - len(self.server_state.connections)
        self._board.put(self._index, Column.LEFT, left)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _serve_one(self, connection: socket.socket) -> None:
        self._connecting += 1
        self._begin(self._connect(connection))

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._handshakes.connect(
                partial(self._protocol, isinstance(connection, Kept)), connection, len(self.server_state.connections)
            )
        except OSError:  # it has left already
            connection.close()
        finally:
            self._connecting -= 1
            self._count_left()

    def _protocol(self, kept: bool) -> asyncio.Protocol:
        """As uvicorn makes it."""
        kind: Any = self.config.http_protocol_class
        protocol: Any = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        protocol.kept = kept
        made: asyncio.Protocol = protocol
        return made

    def _take(self, connection: socket.socket | Lost) -> None:
        self._received += 1
        if isinstance(connection, Lost):
            log.error("front end %d has too many open files: a connection is lost", self._index)
        elif self.should_exit:
            connection.close()
        else:
            self._serve_one(connection)
        self._count_left()

    def _heard(self, message: Any) -> None:
        if isinstance(message, socket.socket | Lost):
            self._take(message)
        elif isinstance(message, Drain):
            self.service.draining = True
            self._ending.drain()
        elif isinstance(message, Close):
            self._close(self.service.settings.shutdown_seconds)
        elif isinstance(message, Cut):
            self._close(0)
        elif isinstance(message, GiveBack):
            self._returns.give(message.number)
        elif isinstance(message, NewKeys):
            self.service.keys.take(message)
        elif isinstance(message, Ask):
            self._begin(self._answer(message))
        elif isinstance(message, Ended):  # the supervisor
            os._exit(1)

    async def _answer(self, ask: Ask) -> None:
        """Do what the supervisor asks, and say when it is done."""
        if ask.what == "serve":
            self.service.calls.opening.set()
            if self.service.settings.grpc_port is not None:
                await self.service.calls.listening.wait()
        elif ask.what == "retire" and not self._retiring:
            self._retiring = True
            await self._retire()
        snapshot = ask.what == "snapshot" and take_snapshot(self.service.metrics, self.service.statistics)
        self._line.send(Answer(ask.number, snapshot or True))

    async def _retire(self) -> None:
        """Begin nothing that has not come yet; the process ends once all else is answered, or `--shutdown-seconds` are
        over."""
        self._until = time.monotonic() + self.service.settings.shutdown_seconds
        self.service.calls.closing.set()
        self._returns.begin()
        if self._handshakes.secure:
            self._ending.drain()  # connections over TLS cannot be given back, but end with their next answer
        while self._connecting > self._handshakes.number:
            await asyncio.sleep(CONNECTING_SECONDS)
        self._returns.begin()
        if self.service.settings.grpc_port is not None:
            await self.service.calls.closed.wait()
        self._begin(self._end_when_all_have_left())

    async def _end_when_all_have_left(self) -> None:
        # A handshake that has begun before the reload brings a connection, and maybe a request.
        await self._in_time(lambda: not (self.server_state.connections or self._connecting))
        self.should_exit = True
