"""A front end's side of an engine in another process (transport.Worker), on the event loop, without a thread."""

import asyncio
import errno
import logging
import math
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.heartbeat import Heartbeat
from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Counts,
    Died,
    Failed,
    Inbound,
    Load,
    Outbound,
    Ready,
    Stop,
    Submit,
)
from msmlp.service.engine.process.host import State
from msmlp.service.engine.process.memory import Board, Ring, new_file
from msmlp.service.engine.process.wire import Channel, Hello, SharedSubmit, Welcome
from msmlp.service.engine.transport import InTransit, Send

log = logging.getLogger("msmlp.engine")

RECONNECT_SECONDS = 0.05
LATER = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Errors that pass: too many front ends wait for the engine already, or there is no room for a file now."""

ROOM_SECONDS = 0.005
"""Between two looks at a ring that is full. It is as large as two of the largest requests."""

ENDED = Died("the engine's process has ended", restarting=True)
GONE = Died("the engine is out of service")


class Connection:
    """To one life of an engine's process: the socket, the ring, and what crosses through both."""

    def __init__(self, address: str, *, stages: int, shape: tuple[int, ...], ring_images: int) -> None:
        """OSError if there is nobody, or no room for more."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.connect(address)
            file = new_file(Ring.bytes(ring_images, shape))
        except OSError:
            connection.close()
            raise
        self.channel, self._stages = Channel(connection), stages
        self.channel.send([Hello(ring_images)], file)
        self._ring = Ring(file, images=ring_images, shape=shape)
        self._next, self._free = 0, ring_images  # position in the ring, and room
        self._in_ring: deque[int] = deque()  # images of each submit that still needs its room, oldest first
        self._received = 0  # submits that the engine has received, so that their room is free again
        self._in_transit = InTransit()
        self._outbox: deque[Inbound] = deque()
        self._board: Board | None = None
        self._row = 0

    def put(self, message: Inbound) -> None:
        """Keep a message until `flush` can send it."""
        if isinstance(message, Submit):
            self._in_transit.put(message)
        self._outbox.append(message)

    def flush(self) -> bool:
        """Send what waits, while the ring has room → whether it had for all."""
        received, _ = self._ring.received
        while self._received < received:
            self._free += self._in_ring.popleft()
            self._received += 1
        frame: list[Any] = []
        while self._outbox and (shared := self._share(self._outbox[0])) is not None:
            frame.append(shared)
            self._outbox.popleft()
        if frame:
            self.channel.send(frame)
        return not self._outbox

    def _share(self, message: Inbound) -> Any:
        """What crosses instead of a message; None if the ring has no room for it now."""
        if not isinstance(message, Submit):
            return message
        start, images = self._next, len(message.pixels)
        if images > self._free:
            return None
        self._ring.write(start, message.pixels)
        self._next = (start + images) % self._ring.images
        self._free -= images
        self._in_ring.append(images)
        return SharedSubmit(message.request, start, images, message.parameters, message.arrival)

    def welcome(self, welcome: Welcome, counts: Counts) -> None:
        self._board, self._row = Board(self.channel.take_file(), self._stages), welcome.row
        self.count(counts)

    def count(self, counts: Counts) -> None:
        if self._board is not None:
            self._board.count(self._row, counts)

    @property
    def beat(self) -> float:
        """The engine's; 0 before its welcome."""
        return self._board.beat if self._board is not None else 0.0

    @property
    def load(self) -> Load | None:
        """What waits, own submits in transit included; None before the engine's welcome."""
        if self._board is None:
            return None
        return self._in_transit.added_to(self._board.published(self._row, self._ring.received))


class RemoteWorker:
    """Uses an engine that listens at `address`, next to other front ends; connects again after its process has died.

    Images are uint8 [*shape]; `ring_images` is how many can be on their way to the engine, and the most per
    request. `send` is called on the event loop on which `start` was called. `Stop` ends this front end's use of the
    engine, once everything in flight is answered, and not the engine.
    """

    def __init__(self, address: str, send: Send, *, stages: int, shape: tuple[int, ...], ring_images: int) -> None:
        self._address, self._send = address, send
        self._stages, self._shape, self._ring_images = stages, shape, ring_images
        self._connection: Connection | None = None
        self._counts = Counts()
        self._flushing = self._looking = self._stopping = False
        self._died: Died | None = None  # what the engine's process said before its end
        self._ended = threading.Event()
        self.ready = threading.Event()
        self.permits, self._silence = 0, math.inf
        self._heartbeat = Heartbeat()
        self.inside: dict[int, int] = {}
        """Images that have not left, by request."""
        self.images = 0
        """Their sum."""
        self._lives = 0  # of the engine's process, as far as they were ready

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect()

    @property
    def state(self) -> State:
        if self.ready.is_set():
            return "up"
        return "out" if self._ended.is_set() else "restarting"

    @property
    def restarts(self) -> int:
        return max(0, self._lives - 1)

    @property
    def load(self) -> Load | None:
        return self._connection.load if self._connection is not None and self.ready.is_set() else None

    def put(self, message: Inbound) -> None:
        """Send a message at the end of this turn of the event loop. Without an engine it is dropped: Died has ended,
        or will end, all requests. DeviceError if it can never fit.
        """
        if isinstance(message, Stop):
            self._stopping = True
            self._end_if_stopped()
        elif self._connection is not None and self.ready.is_set():
            if isinstance(message, Submit):
                images = len(message.pixels)
                if images > self._ring_images:
                    raise DeviceError(f"a request has {images} images; expected at most {self._ring_images}")
                self.inside[message.request] = images
                self.images += images
            elif isinstance(message, Cancel):
                self._forget(message.request)
                self._end_if_stopped()
            self._connection.put(message)
            # Together with all others of the turn: the first would wake the engine for a batch of one.
            if not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)

    def look(self, now: float) -> float:
        """See transport.Worker. A silent engine is left, and reached again once it, or the process that its host starts
        after it, accepts connections."""
        if self._ended.is_set():
            return 0.0
        age = self._heartbeat.look(self._connection.beat if self._connection is not None else 0.0, now)
        if age > self._silence and self.ready.is_set():
            self._died = Died(f"the engine has not responded for {age:.1f} s", restarting=True)
            log.error("%s", self._died.detail)
            self._lose()
        return age

    def share(self, counts: Counts) -> None:
        self._counts = counts
        if self._connection is not None:
            self._connection.count(counts)

    def join(self, timeout: float | None = None) -> None:
        """Wait, on another thread than the loop's, until all is answered, and give up after `timeout` seconds."""
        if not self._ended.wait(timeout):
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._end, Died("stopped"))
                self._ended.wait(1)

    def _connect(self) -> None:
        if self._ended.is_set():
            return
        try:
            made = Connection(self._address, stages=self._stages, shape=self._shape, ring_images=self._ring_images)
        except OSError as error:
            if error.errno in LATER:
                self._loop.call_later(RECONNECT_SECONDS, self._connect)
            else:
                self._end(GONE)
        else:
            self._connection, self._died = made, None
            made.channel.open(self._hear)

    def _hear(self, messages: list[Any] | None) -> None:
        connection = self._connection
        assert connection is not None
        if messages is None:
            self._lose()
            return
        heard: list[Outbound] = [message for message in messages if self._take_in(connection, message)]
        ready = next((message for message in heard if isinstance(message, Ready)), None)
        if ready is not None:
            self.permits, self._silence = ready.permits, ready.silence
            self._heartbeat = Heartbeat()  # another engine may have beaten as often as the last that was seen
            self._lives += 1
        if heard:
            self._send(heard)
        if ready is not None:
            self.ready.set()  # after AsyncEngine got the message: others wait for this event
        if self._died is not None:  # the last message
            self._lose()
            return
        self._flush()
        self._end_if_stopped()

    def _take_in(self, connection: Connection, message: Any) -> bool:
        """Note what this side needs → whether the message is to be passed on."""
        if isinstance(message, Welcome):
            connection.welcome(message, self._counts)
        elif isinstance(message, Died):
            self._died = message
        elif isinstance(message, Answers):
            self._left(message)
        elif isinstance(message, Failed):
            for request in message.requests.tolist():
                self._forget(request)
        return not isinstance(message, Welcome | Died)

    def _left(self, answers: Answers) -> None:
        inside = self.inside
        for request, reason in zip(answers.request.tolist(), answers.reason.tolist(), strict=True):
            if reason != Reason.GOES_ON and request in inside:
                self.images -= 1
                inside[request] -= 1
                if not inside[request]:
                    del inside[request]

    def _forget(self, request: int) -> None:
        """Nothing more comes for it."""
        self.images -= self.inside.pop(request, 0)

    def _flush(self) -> None:
        self._flushing = False
        connection = self._connection
        if connection is None:
            return
        if not connection.flush() and not self._looking:
            # The engine says nothing when it has made room.
            self._looking = True
            self._loop.call_later(ROOM_SECONDS, self._look)

    def _look(self) -> None:
        """Whether there is room in the ring now."""
        self._looking = False
        self._flush()

    def _lose(self) -> None:
        """The engine's process has ended, or left this front end: what is inside is lost."""
        self._close()
        died = self._died or ENDED
        if self._stopping or not died.restarting:
            self._end(Died("stopped") if self._stopping else died)
            return
        if self.ready.is_set():
            self.ready.clear()
            self._send([*self._failed(died), died])
        self._loop.call_later(RECONNECT_SECONDS, self._connect)

    def _failed(self, died: Died) -> list[Outbound]:
        requests = np.fromiter(self.inside, dtype=np.int64)
        self.inside.clear()
        self.images = 0
        return [Failed(requests, died.detail)] if len(requests) else []

    def _end_if_stopped(self) -> None:
        if self._stopping and not self.inside:
            self._end(Died("stopped"))

    def _end(self, died: Died) -> None:
        if self._ended.is_set():
            return
        self._close()
        self.ready.clear()
        self._ended.set()
        self._send([*self._failed(died), died])

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.channel.close()
