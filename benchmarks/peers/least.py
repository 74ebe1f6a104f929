"""The least that a server of these graphs does: a bound on every other server, not an example of one.

An asyncio protocol and httptools; each picture is decoded and run alone, inline on the loop's thread. Every process has
a socket of its own on the same port, and the kernel spreads the connections. It checks, limits and counts nothing, and
takes a request without a body for a probe.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, cast

import httptools
import orjson
import uvloop

from benchmarks.peers.programs import Graphs, decode

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class LeastProtocol(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self, graphs: Graphs) -> None:
        self._graphs, self._parts = graphs, list[bytes]()
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        body, graphs = b"".join(self._parts), self._graphs
        self._parts.clear()
        answer = orjson.dumps(graphs.classify_one(decode(body, graphs.size)[None]) if body else {"ready": True})
        self._transport.write(_HEAD % len(answer) + answer)


def serve_least(given: dict[str, Any]) -> None:
    """Serve in `given["processes"]` processes until SIGTERM; the benchmark ends the children."""
    for _ in range(given["processes"] - 1):
        if not os.fork():
            break
    uvloop.run(_serve(given))


async def _serve(given: dict[str, Any]) -> None:
    graphs = Graphs(Path(given["folder"]), given["thresholds"], threads=1)
    listener = socket.create_server(("127.0.0.1", given["port"]), backlog=1024, reuse_port=True)
    server = await asyncio.get_running_loop().create_server(lambda: LeastProtocol(graphs), sock=listener)
    await server.serve_forever()
