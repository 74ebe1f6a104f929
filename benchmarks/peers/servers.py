"""The servers that are compared: how each is started, paused between its turns, and tuned."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from benchmarks.peers.programs import Answer
from msmlp.bench.http import SERVE
from msmlp.bench.processes import Server, family, server_process

OURS, OURS_ALONE, OURS_KEYED = "msmlp", "msmlp, 1 front end", "msmlp, with keys"
KEY = "a-key-of-a-benchmark"
OUR_SIZES: dict[str, tuple[str, ...]] = {OURS: (), OURS_ALONE: ("--frontends", "1"), OURS_KEYED: ()}
"""Our servers, and what is not default about them; one also asks for KEY, with limits that are never reached."""
PLAIN, CASCADE, SHIPPED = "exits off", "cascade", "shipped weights"
Say = Callable[[str], None]
Tuning = dict[str, Any]
BETTER = 1.03
"""A change is kept when it is faster by this factor; less is noise."""


@dataclass(frozen=True)
class Case:
    """What is requested: a network, its thresholds (none: exits off), encoded images and the right answers.

    `by_default`: our server is to take these thresholds without being told.
    """

    name: str
    folder: Path
    thresholds: tuple[float, ...]
    files: tuple[bytes, ...]
    right: tuple[Answer, ...]
    by_default: bool = False

    def path(self, server: str) -> str:
        if server not in OUR_SIZES:
            return "/predict"
        told = self.thresholds and not self.by_default
        return "/classify" + (f"?thresholds={','.join(map(repr, self.thresholds))}" if told else "")


@dataclass(frozen=True)
class Peer:
    """Another server: its program, the settings it starts with, and what `tune` tries in turn.

    `batches`: it runs several images at once, and does not say how many.
    """

    name: str
    program: str
    start: Tuning
    steps: tuple[tuple[Tuning, ...], ...]
    batches: bool = False


LEAST = Peer("least server", "least", {"processes": 2}, ())
"""Not a peer but a bound."""


def _fastapi(name: str, processes: int) -> Peer:
    start = {"processes": processes, "threads": 1, "spinning": False, "pool": 2}
    steps = (({"threads": 2}, {"threads": 2, "spinning": True}), ({"pool": 1}, {"pool": 8}))
    return Peer(name, "fastapi", start, steps)


PEERS = (
    Peer(
        "LitServe",
        "litserve",
        {"workers": 1, "threads": 1, "spinning": False, "batch": 16, "timeout": 0.001, "fast_queue": False},
        (
            ({"threads": 2}, {"threads": 2, "spinning": True}, {"workers": 2}),
            ({"batch": 8}, {"batch": 32}),
            ({"timeout": 0.0}, {"timeout": 0.005}),
            ({"fast_queue": True},),
        ),
        batches=True,
    ),
    _fastapi("FastAPI, 1 process", 1),
    _fastapi("FastAPI, 2 processes", 2),
)
FASTAPI_TWO = PEERS[-1].name
SERVERS = (*OUR_SIZES, LEAST.name, *(peer.name for peer in PEERS))
"""In the order of the tables."""


@contextmanager
def our_server(case: Case, say: Say, name: str = OURS) -> Iterator[Server]:
    """`msmlp serve` as it is shipped."""
    where = ("--weights", str(case.folder), "--host", "127.0.0.1", "--port", "0")
    with NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(f"{KEY} requests=1e6 pixels=1e12\n")
        keys.flush()
        asks = ("--api-keys-file", keys.name) if name == OURS_KEYED else ()
        options = ["-c", SERVE, "serve", "--backend", "onnx", *where, *OUR_SIZES[name], *asks]
        with server_process(name, options, say) as server:
            yield server


@contextmanager
def peer_server(peer: Peer, tuning: Tuning, case: Case, python: str, say: Say) -> Iterator[Server]:
    given = {"folder": str(case.folder), "thresholds": case.thresholds, "port": _free_port(), **tuning}
    arguments = ["-m", "benchmarks.peers.programs", peer.program, json.dumps(given)]
    with server_process(peer.name, arguments, say, python=python) as server:
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def pause(server: Server) -> None:
    """Stop its processes: some poll while idle, which would slow down the server that is measured."""
    _signal(server, signal.SIGSTOP, parents_first=True)


def resume(server: Server) -> None:
    """Continue its processes, children first, because a parent may watch its children.

    Our supervisor takes silence for death only after it has looked several times, and is stopped with its front ends.
    """
    _signal(server, signal.SIGCONT, parents_first=False)


def _signal(server: Server, number: signal.Signals, *, parents_first: bool) -> None:
    assert server.process is not None
    processes = list(family(server.process))
    for process in processes if parents_first else reversed(processes):
        with suppress(ProcessLookupError):  # a dead process shows up as missing answers
            os.kill(process, number)


def tune(
    start: Tuning, steps: Iterable[Iterable[Tuning]], measure: Callable[[Tuning], float]
) -> tuple[Tuning, list[dict[str, Any]]]:
    """The best settings, and everything that was tried with its requests/s.

    Each step has alternatives to the best settings so far; the fastest of them is kept.
    """
    best, speed = start, measure(start)
    tried = [{"settings": start, "requests_per_second": round(speed, 1)}]
    for alternatives in steps:
        before = best
        for change in alternatives:
            settings = {**before, **change}
            found = measure(settings)
            tried.append({"settings": settings, "requests_per_second": round(found, 1)})
            if found > BETTER * speed:
                best, speed = settings, found
    return best, tried
