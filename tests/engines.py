"""The engine inline, as a thread and as a process, spoken to through messages alone, over a fake that a process can
build."""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import OptionError
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.messages import Counts, ExitParameters, Inbound, Load, Outbound, Stop, Submit
from msmlp.service.engine.process.group import ProcessWorker
from msmlp.service.engine.process.host import Backoff, EngineHost, EngineHosts
from msmlp.service.engine.process.remote import RemoteWorker
from msmlp.service.engine.transport import InlineWorker, Send, ThreadWorker, Worker
from tests import fakes
from tests.fakes import PATIENCE_SECONDS, FakeBackend, pictures

Message = TypeVar("Message")
Result = TypeVar("Result")

OWN_REQUEST = 10**9
"""The number of the request that holds the device."""

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


class BreaksLater(Build):
    """After `broken` is set, processes end before they are ready."""

    def __init__(self, **size: int) -> None:
        super().__init__(**size)
        self.broken = get_context("spawn").RawValue("b", 0)

    def __call__(self) -> FakeBackend:
        if self.broken.value:
            os._exit(7)
        return super().__call__()


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


SHAPE = {"stages": 3, "shape": (8, 8, 3)}
"""Of the backend of `fakes`."""


def host_of(build: BackendFactory, **options: Any) -> EngineHost:
    """A host that does not wait long before a restart."""
    host = EngineHost(build, **{"permits": 64, **SHAPE, **options})
    host._backoff = Backoff(first=0.01, longest=0.01)
    return host


def process(build: BackendFactory, send: Send, *, ring_images: int = 256, **options: Any) -> ProcessWorker:
    """An engine in a process, for the pictures of `fakes`; use it on an event loop."""
    connect = partial(RemoteWorker, ring_images=ring_images, **SHAPE)
    return ProcessWorker(EngineHosts([host_of(build, **options)]), connect, send)


class OnLoop:
    """A worker that lives on an event loop, for a test that has none: the loop is in a thread of its own."""

    def __init__(self, make: Callable[[Send], Worker], send: Send) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop")
        self.worker = make(send)
        self.ready = self.worker.ready

    def start(self) -> None:
        self._thread.start()
        self._do(self.worker.start)

    def put(self, message: Inbound) -> None:
        self._do(self.worker.put, message)

    def share(self, counts: Counts) -> None:
        assert self.worker.share is not None
        self._do(self.worker.share, counts)

    @property
    def load(self) -> Load | None:
        return self._do(lambda: self.worker.load)

    def join(self, timeout: float | None = None) -> None:
        self.worker.join(timeout)
        self.close()

    def close(self) -> None:
        """End the loop, whatever still happens there."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_SECONDS)
            self._loop.close()

    def _do(self, call: Callable[..., Result], *arguments: Any) -> Result:
        async def on_loop() -> Result:
            return call(*arguments)

        if not self._thread.is_alive():  # it has ended
            return call(*arguments)
        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(PATIENCE_SECONDS)


def process_on_loop(build: BackendFactory, send: Send, **options: Any) -> OnLoop:
    return OnLoop(lambda heard: process(build, heard, **options), send)


class InlineOnLoop(OnLoop):
    """The loop takes messages once the batch that holds it has ended, so nothing here waits for it."""

    def put(self, message: Inbound) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.worker.put, message)
        else:  # it has ended
            self.worker.put(message)


def inline(build: BackendFactory, send: Send, **options: Any) -> InlineOnLoop:
    """An engine on the thread of an event loop."""
    return InlineOnLoop(lambda heard: InlineWorker(build, heard, **options), send)


def remote(address: str, send: Send, *, ring_images: int = 256) -> OnLoop:
    """A front end of a host's engine."""
    return OnLoop(lambda heard: RemoteWorker(address, heard, ring_images=ring_images, **SHAPE), send)


class Talk:
    """A running engine and all it says."""

    def __init__(self, make: Callable[..., Worker], source: Any, **options: Any) -> None:
        """`source` is what `make` takes: a backend to build, or an address."""
        self._said: queue.SimpleQueue[Outbound] = queue.SimpleQueue()
        self.worker = make(source, lambda said: [self._said.put(message) for message in said], **options)
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
        """While this lasts, the device is busy with a request of its own (OWN_REQUEST) and all others wait."""
        with gate.held():
            self.submit(OWN_REQUEST, pictures(1, 1.0))
            gate.wait_until_reached()
            yield
