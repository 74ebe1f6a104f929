"""The core's end of the transport (core.Port) in an engine's process: front ends, and the host that started it."""

import itertools
import logging
import math
import os
import select
import socket
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from msmlp.service.engine.heartbeat import BEAT_SECONDS
from msmlp.service.engine.messages import Cancel, Counts, Died, Inbound, Load, Outbound, Ready, Stop, Submit
from msmlp.service.engine.process import peers
from msmlp.service.engine.process.memory import PEERS, Board, Ring
from msmlp.service.engine.process.wire import Channel, Hello, SharedSubmit, Welcome
from msmlp.service.memory import tune_gc

log = logging.getLogger("msmlp.engine")

MOST_UNSENT = 64 * 2**20
"""Bytes that may wait for a front end that does not read; with more, it is left."""


class Peer:
    """A front end: its connection, its ring once it has said hello, and what was received from it."""

    def __init__(self, number: int, connection: socket.socket, row: int) -> None:
        self.number, self.row = number, row
        self.channel = Channel(connection)
        self.ring: Ring | None = None
        self.submits = self.images = 0


class ChildPort:
    """Reads its sockets itself, without a thread in between, and never waits for a front end.

    `listener` is where front ends connect; `host` sends `Stop` and is told Ready and Died; `file` is that of the Board.
    Every call is a sign of life there, and so is waiting for messages.
    """

    def __init__(
        self,
        listener: socket.socket,
        host: Connection,
        file: int,
        *,
        stages: int,
        shape: tuple[int, ...],
        most_unsent: int = MOST_UNSENT,
    ) -> None:
        self._listener, self._host, self._file = listener, host, file
        self._stages, self._shape, self._most_unsent = stages, shape, most_unsent
        self._board = Board(os.dup(self._file), stages)
        self._numbers = itertools.count()
        self._peers: dict[int, Peer] = {}  # by the number of the connection's file
        self._inbox: list[Inbound] = []
        self._ready: Ready | None = None
        listener.setblocking(False)
        self._poll = select.poll()
        for each in (listener, host):
            self._poll.register(each, select.POLLIN)

    def take(self, *, block: bool) -> list[Inbound]:
        """All that has come; see core.Port."""
        while True:
            events = self._poll.poll(math.ceil(1e3 * BEAT_SECONDS) if block and not self._inbox else 0)
            self._board.beat += 1
            for file, event in events:
                self._hear(file, event)
            if self._inbox or not block:
                messages, self._inbox = self._inbox, []
                return messages

    def send(self, messages: list[Outbound]) -> None:
        last = messages[-1] if messages else None
        if isinstance(last, Ready):
            tune_gc()
            self._ready = last
        by_number = {peer.number: peer for peer in self._peers.values()}
        for number, said in peers.split(messages, by_number).items():
            self._tell(by_number[number], said)
        if isinstance(last, Ready | Died):
            with suppress(OSError):
                self._host.send(last)
        self._board.beat += 1

    def publish(self, load: Load) -> None:
        self._board.publish(load)
        for peer in self._peers.values():
            if peer.ring is not None:
                peer.ring.received = peer.submits, peer.images
        self._board.beat += 1

    def drain(self, seconds: float) -> None:
        """Before the end: let front ends read what was sent to them, for at most `seconds`."""
        until = time.monotonic() + seconds
        while any(peer.channel.unsent for peer in self._peers.values()) and time.monotonic() < until:
            for peer in self._peers.values():
                peer.channel.flush()
            self._board.beat += 1
            time.sleep(0.01)

    def _hear(self, file: int, event: int) -> None:
        if file == self._host.fileno():
            self._hear_host()
        elif file == self._listener.fileno():
            self._accept()
        elif (peer := self._peers.get(file)) is not None:
            if event & select.POLLOUT:
                peer.channel.flush()
                self._watch(peer)
            if event & ~select.POLLOUT:
                self._hear_peer(peer)

    def _hear_host(self) -> None:
        try:
            self._host.recv()
        except (EOFError, OSError):  # its process has ended, and child.py ends this one
            self._poll.unregister(self._host)
            return
        self._inbox.append(Stop())

    def _hear_peer(self, peer: Peer) -> None:
        try:
            messages = peer.channel.receive()
            if messages is None:
                self._leave(peer)
                return
            for message in messages:
                self._read(peer, message)
        except Exception:
            log.exception("a front end sent an invalid message: closing its connection")
            self._leave(peer)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has given up, or there is no file left: it is still there at the next look
            time.sleep(0.001)
            return
        free = set(range(PEERS)) - {peer.row for peer in self._peers.values()}
        if not free:
            log.error("an engine takes at most %d front ends: one more is refused", PEERS)
            connection.close()
            return
        peer = Peer(next(self._numbers), connection, min(free))
        self._peers[peer.channel.fileno()] = peer
        self._poll.register(peer.channel.fileno(), select.POLLIN)
        self._board.peers = len(self._peers)

    def _read(self, peer: Peer, message: Any) -> None:
        if isinstance(message, SharedSubmit):
            assert peer.ring is not None
            peer.submits += 1
            peer.images += message.images
            request, pixels = peers.number(peer.number, message.request), peer.ring.read(message.start, message.images)
            self._inbox.append(Submit(request, pixels, message.parameters, message.arrival))
        elif isinstance(message, Cancel):
            self._inbox.append(Cancel(peers.number(peer.number, message.request)))
        elif isinstance(message, Hello):
            self._welcome(peer, message)

    def _welcome(self, peer: Peer, hello: Hello) -> None:
        peer.ring = Ring(peer.channel.take_file(), images=hello.images, shape=self._shape)
        peer.channel.send([Welcome(peer.row)], self._file)
        if self._ready is not None:
            peer.channel.send([self._ready])
        self._watch(peer)

    def _tell(self, peer: Peer, messages: list[Outbound]) -> None:
        peer.channel.send(messages)
        if peer.channel.unsent > self._most_unsent:
            log.error("a front end has not read %d MiB of answers: its connection is closed", self._most_unsent >> 20)
            self._leave(peer)
        else:
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        """Look for messages of a front end, and for its reading while something waits for that."""
        self._poll.modify(peer.channel.fileno(), select.POLLIN | (select.POLLOUT if peer.channel.unsent else 0))

    def _leave(self, peer: Peer) -> None:
        """A front end has left: all its tickets leave too."""
        self._poll.unregister(peer.channel.fileno())
        del self._peers[peer.channel.fileno()]
        peer.channel.close()
        self._board.count(peer.row, Counts())
        self._board.peers = len(self._peers)
        self._inbox.append(peers.all_of(peer.number))
