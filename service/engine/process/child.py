"""The engine's process, with the core on its main thread. Its host ends it when it gives no sign of life."""

import os
import shutil
import signal
import socket
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from msmlp.service.engine.core import BackendFactory, run
from msmlp.service.engine.heartbeat import SILENCE_SECONDS
from msmlp.service.engine.process.port import ChildPort
from msmlp.service.logs import Logging

DRAIN_SECONDS = 5.0
"""How long the last answers may take to be read."""


SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
"""They may reach the whole process group, but are for the parent alone."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is started with; `build` crosses pickled.

    Images are uint8 [*shape]. `folder` is removed if the host ends without its own end; `gpu` is the one GPU
    that the process may see (None: all). See `core.run` for `permits`, `shadow_every` and `silence`.
    """

    build: BackendFactory
    permits: int | None
    shadow_every: int
    stages: int
    shape: tuple[int, ...]
    folder: str
    gpu: str | None = None
    silence: float = SILENCE_SECONDS


def begin(logs: Logging | None, folder: str | None = None) -> None:
    """Begin a process of a service: it logs as the parent does, and ends with it, and then removes `folder`."""
    # Ctrl-C and a service manager's SIGTERM reach the whole process group, but what is in flight is answered first:
    # the end comes as a message, or immediately when the parent is gone.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(folder,), name="msmlp-parent", daemon=True).start()
    if logs is not None:
        logs.begin()


def _end_with_parent(folder: str | None) -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # even in mid-batch


def main(spec: ChildSpec, listener: socket.socket, host: Connection, board: int, logs: Logging | None) -> None:
    """The engine's life; `board` is the file of memory.Board, `logs` is how the host logs."""
    begin(logs, spec.folder)
    if spec.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec.gpu
    port = ChildPort(listener, host, board, stages=spec.stages, shape=spec.shape)
    run(spec.build, port, permits=spec.permits, shadow_every=spec.shadow_every, silence=spec.silence)
    port.drain(DRAIN_SECONDS)
    os._exit(0)  # tearing torch down may take seconds
