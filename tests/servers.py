"""Services for tests: on a fake backend or a real one, behind a real socket, and pictures as files to send there."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import uvloop
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.weights import Calibration, OperatingPoint
from msmlp.model.weights.calibration import Table
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.core import BackendFactory
from msmlp.service.engine.messages import Outbound
from msmlp.service.errors import EngineDownError, StartingError
from msmlp.service.http.app import UVICORN, create_app
from msmlp.service.http.server import listen
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings
from tests.certificates import secured, trusting
from tests.fakes import PATIENCE_SECONDS, FakeBackend


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """A picture [H, W, 3] as a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def fake_service(weights: Path, build: BackendFactory, **settings: Any) -> Service:
    """The service of a weights folder (3 stages, 10 classes, 32 pixels) with another backend under it.

    Without brown-out, a longest wait and shadows unless `settings` have them: a device that is held is no overload. Its
    operating points are `steep`: what the training gave has nothing to do with the backend, and may never exit early.
    """
    service = build_service(Settings(**{"weights": weights, "device": "cpu", "engine": "thread", **settings}))
    service.engine = AsyncEngine(
        build,
        permits=service.settings.capacity,
        max_wait_seconds=settings.get("max_wait_ms", 0) / 1e3,
        brownout_seconds=settings.get("brownout_ms", 0) / 1e3,
        shadow_every=round(1 / settings["shadow"]) if "shadow" in settings else 0,
    )
    service.engine.decode_backlog, service.engine.decode_busy = service.decoders.backlog, service.decoders.busy
    service.engine.watch(service.metrics.observe)
    steep(service)
    return service


def fake_backend(capacity: int = 1024, max_batch: int = 64) -> FakeBackend:
    """One that fits those weights."""
    return FakeBackend(stages=3, classes=10, size=32, capacity=capacity, max_batch=max_batch)


@contextmanager
def serving(service: Service, *, wait: bool = True) -> Iterator[httpx.Client]:
    """A real server around a service, on a free port, once it has started and (with `wait`) its engine is ready."""
    listener, chain = listen("127.0.0.1", 0), service.settings.ssl_certfile
    address = f"http{'s' if chain else ''}://127.0.0.1:{listener.getsockname()[1]}"
    secure: Any = {"ssl_certfile": chain, "ssl_keyfile": service.settings.ssl_keyfile} if chain else {}
    server = uvicorn.Server(uvicorn.Config(create_app(service), timeout_graceful_shutdown=30, **UVICORN, **secure))

    loops: list[asyncio.AbstractEventLoop] = []

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if chain else None) as runner:
            loops.append(runner.get_loop())
            runner.run(server.serve([listener]))

    thread = threading.Thread(target=run, name="test-server")
    thread.start()
    try:
        with httpx.Client(base_url=address, timeout=PATIENCE_SECONDS, verify=trusting()) as client:
            wait_until(lambda: server.started or not thread.is_alive())
            if wait:
                assert service.engine.worker.ready.wait(PATIENCE_SECONDS), "the engine did not become ready"
                wait_until(lambda: not _is_starting(service.engine))  # the event loop has heard of it
            yield client
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive():
            for task in asyncio.all_tasks(loops[0]):
                task.print_stack()
            pytest.fail("the server does not end; stderr says where its tasks wait")
        listener.close()


def _is_starting(engine: AsyncEngine) -> bool:
    with suppress(EngineDownError):
        try:
            engine.check()
        except StartingError:
            return True
    return False


class Told:
    """An observer of an engine that can be waited on."""

    def __init__(self, engine: AsyncEngine, kind: type[Outbound]) -> None:
        self._kind, self._told = kind, threading.Event()
        engine.watch(self._observe)

    def _observe(self, message: Outbound) -> None:
        if isinstance(message, self._kind):
            self._told.set()

    def wait(self) -> None:
        """Until such a message came."""
        assert self._told.wait(PATIENCE_SECONDS), f"no {self._kind.__name__} came"


class Submissions:
    """Counts what requests hand to an engine, so a test can wait until enough of them wait for a held device."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._count = threading.Semaphore(0)
        put = engine.worker.put

        def counted(message: Any) -> None:
            put(message)
            self._count.release()

        engine.worker.put = counted  # type: ignore[method-assign]

    def wait_for(self, count: int) -> None:
        """Until `count` more messages were handed over."""
        for _ in range(count):
            assert self._count.acquire(timeout=PATIENCE_SECONDS), "a request did not reach the engine"


def knock(client: httpx.Client, **request: Any) -> socket.socket:
    """`POST /classify` by hand, on a socket that can be closed before the answer has come."""
    built = client.build_request("POST", "/classify", **request)
    head = [f"POST {built.url.raw_path.decode()} HTTP/1.1", *(f"{k}: {v}" for k, v in built.headers.items()), "", ""]
    connection = connect(client)
    connection.sendall("\r\n".join(head).encode() + built.read())
    return connection


def connect(client: httpx.Client) -> socket.socket:
    """A connection to a client's server, over TLS where that is."""
    base = client.base_url
    plain = socket.create_connection((base.host, base.port or 80), timeout=PATIENCE_SECONDS)
    return secured(plain) if base.scheme == "https" else plain


def wait_until(true: Callable[[], bool]) -> None:
    """For what a server does in its own time."""
    for _ in range(PATIENCE_SECONDS * 100):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def steep(service: Service) -> None:
    """Operating points of clearly different costs and accuracies, whatever the training gave."""
    gflops = service.facts.gflops
    points = tuple(
        OperatingPoint(
            name=name,
            thresholds=(threshold, threshold),
            expected_accuracy=accuracy,
            standard_error=0.01,
            mean_gflops=cost,
            exit_share=(1.0, 0.0, 0.0),
            solver="by hand",
        )
        for name, threshold, accuracy, cost in [
            ("fast", 0.3, 0.6, gflops[0]),
            ("balanced", 0.6, 0.7, gflops[1]),
            ("accurate", 0.9, 0.8, gflops[2]),
        ]
    )
    file = service.calibration.file.model_copy(update={"operating_points": points})
    table = np.full((4, 3), 0.5, dtype=np.float32)
    # No exit alone is ever right, so that nothing chooses one.
    calibration = Calibration(file, Table(table, table > 1, np.array(gflops)), "0")
    service.operating_points = OperatingPoints(calibration, gflops, "balanced")
    service.metrics.watch(service.engine, service.operating_points)
