"""Services for tests: on a fake backend or a real one, behind a real socket, and pictures as files to send there."""

import asyncio
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from service.app import create_app
from service.engine.facade import Engine
from service.engine.messages import Outbound
from service.engine.worker import BackendFactory
from service.settings import Settings
from service.state import Service, build_service
from tests.fakes import PATIENCE_SECONDS, FakeBackend


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """A picture [H, W, 3] as a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def fake_service(weights: Path, build: BackendFactory, **settings: Any) -> Service:
    """The service of a weights folder (3 stages, 10 classes, 32 pixels) with another backend under it.

    Without brown-out and shadows unless `settings` have them: a device that is held is no overload.
    """
    service = build_service(Settings(weights=weights, device="cpu", **settings))
    service.engine = Engine(
        build,
        classes=10,
        stages=3,
        capacity=service.settings.capacity,
        observe=service.metrics.observe,
        brownout_seconds=settings.get("brownout_ms", 0) / 1e3,
        shadow_every=round(1 / settings["shadow"]) if "shadow" in settings else 0,
    )
    service.metrics.watch(service.engine, service.policy)
    return service


def fake_backend(capacity: int = 1024, max_batch: int = 64) -> FakeBackend:
    """One that fits those weights."""
    return FakeBackend(stages=3, classes=10, size=32, capacity=capacity, max_batch=max_batch)


@contextmanager
def serving(service: Service, *, wait: bool = True) -> Iterator[httpx.Client]:
    """A real server around a service, on a free port, once the engine is ready (with `wait`)."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="test-server")
    thread.start()
    try:
        with httpx.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
            if wait:
                assert service.engine.worker.ready.wait(PATIENCE_SECONDS), "the engine did not become ready"
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Told:
    """An observer of an engine that can be waited on."""

    def __init__(self, engine: Engine, kind: type[Outbound]) -> None:
        self._kind, self._told = kind, threading.Event()
        engine.watch(self._observe)

    def _observe(self, message: Outbound) -> None:
        if isinstance(message, self._kind):
            self._told.set()

    def wait(self) -> None:
        """Until such a message came."""
        assert self._told.wait(PATIENCE_SECONDS), f"no {self._kind.__name__} came"


class Submissions:
    """Counts what requests hand to an engine, so that a test can wait until so many stand before a held device."""

    def __init__(self, engine: Engine) -> None:
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
