"""The engine as a thread and as a process, spoken to through messages alone, over a fake that a process can build."""

import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import OptionError
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.messages import ExitParameters, Outbound, Stop, Submit
from msmlp.service.engine.process.supervisor import ProcessWorker
from msmlp.service.engine.transport import Send, ThreadWorker, Worker
from tests import fakes
from tests.fakes import PATIENCE_SECONDS, FakeBackend, pictures

Message = TypeVar("Message")

BROKEN, FATAL = 200, 201
"""Labels at which a batch fails, and at which its process ends without a word."""


class Gate:
    """`fakes.Gate` across processes. It is polled, because a process that waits at it may be killed there."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._closed, self._reached = context.RawValue("b", 0), context.RawValue("b", 0)

    def pass_through(self) -> None:
        self._reached.value = 1
        _until(lambda: not self._closed.value)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._reached.value, self._closed.value = 0, 1
        try:
            yield
        finally:
            self._closed.value = 0

    def wait_until_reached(self) -> None:
        _until(lambda: bool(self._reached.value))


def _until(true: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_SECONDS * 1000):
        if true():
            return
        time.sleep(0.001)
    raise AssertionError("it never came true")


class Build:
    """Builds a fake backend behind a gate, in whatever process it is called."""

    def __init__(self, **size: int) -> None:
        self.gate, self._size = Gate(), size

    def __call__(self) -> FakeBackend:
        backend = FakeBackend(**self._size)
        backend.gate = self.gate  # type: ignore[assignment]
        backend.fail = _fail
        return backend


def _fail(stage: int, pixels: NDArray[np.uint8]) -> None:
    labels = pixels[:, 1, 0, 1]
    if (labels == FATAL).any():
        os._exit(9)
    if (labels == BROKEN).any():
        raise ZeroDivisionError("a secret of the device")


def no_device() -> FakeBackend:
    """What the caller must mend."""
    raise OptionError("device", "cuda is not available here")


def ends_at_once() -> FakeBackend:
    """As a driver may."""
    os._exit(7)


def thread(build: BackendFactory, send: Send, **options: Any) -> Worker:
    """An engine in a thread."""
    return ThreadWorker(build, send, **options)


def process(build: BackendFactory, send: Send, **options: Any) -> ProcessWorker:
    """An engine in a process, for the pictures of `fakes`."""
    return ProcessWorker(build, send, stages=3, size=8, **{"ring_images": 256, **options})


class Talk:
    """A running engine and all it says."""

    def __init__(self, make: Callable[..., Worker], build: BackendFactory, **options: Any) -> None:
        self._said: queue.SimpleQueue[Outbound] = queue.SimpleQueue()
        self.worker = make(build, lambda said: [self._said.put(message) for message in said], **options)
        self.worker.start()

    def submit(self, request: int, pixels: NDArray[np.uint8], **parameters: Any) -> None:
        self.worker.put(Submit(request, pixels, ExitParameters(np.array([0.5, 0.5]), 1, 3, **parameters), arrival=1.0))

    def hear(self, kind: type[Message]) -> Message:
        """The next message of this kind; what comes before it is passed over."""
        while True:
            message = self._said.get(timeout=PATIENCE_SECONDS)
            if isinstance(message, kind):
                return message

    def stop(self) -> list[Outbound]:
        """End the engine → what it said that was not heard yet, in order."""
        self.worker.put(Stop())
        self.worker.join(PATIENCE_SECONDS)
        said = []
        while not self._said.empty():
            said.append(self._said.get())
        return said

    @contextmanager
    def device_held(self, gate: Gate | fakes.Gate) -> Iterator[None]:
        """While this lasts, the device is busy with a request of its own (number -1) and all others wait."""
        with gate.held():
            self.submit(-1, pictures(1, 1.0))
            gate.wait_until_reached()
            yield
