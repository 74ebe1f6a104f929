"""`msmlp.load`: a weights folder in this process, called as a service is."""

import asyncio
import os
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from msmlp.client.answer import Answer, ServiceError, StreamLine
from msmlp.client.request import Images, Options, as_text, read_images
from msmlp.model.errors import DeviceError, MsmlpError
from msmlp.service.engine.messages import Died, Outbound, Ready
from msmlp.service.errors import RetryableError, TooManyImagesError, problem
from msmlp.service.inference import ClassifyRequest, classify, stream
from msmlp.service.options import parse_options
from msmlp.service.service import Service, build_service
from msmlp.service.settings import load_settings
from msmlp.service.telemetry.record import RequestRecord

_new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ModuleNotFoundError):
    import uvloop

    _new_loop = uvloop.new_event_loop  # other threads wake it sooner

T = TypeVar("T")

INTERRUPT_SECONDS = 1.0
"""The longest that a Ctrl-C may go unnoticed."""


def load(weights: str | os.PathLike[str] | None = None, **settings: Any) -> "Model":
    """A model in this process, warm and ready; without `weights` the one that comes with the package.

    Args:
        weights: a weights folder.
        settings: those of `msmlp serve`, by the same names (docs/settings.md): `device`, `dtype`, `max_batch`,
            `policy`, ... Brown-out and shadows are off: there are no other callers to protect.

    Raises:
        MsmlpError: weights, settings or a device that do not fit.
    """
    # No process: it would import the caller's script again.
    alone = {
        "engine": "inline",
        "brownout_ms": 0,
        "max_wait_ms": 0,
        "shadow": 0,
        "weights": None if weights is None else Path(weights),
    }
    return Model(build_service(load_settings(str, **{**alone, **settings})))


class Model:
    """Answers as `msmlp.Client` does, in-process. Use it from any number of threads; close it, or use it in `with`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock, self._closed = threading.Lock(), False
        # Streams that have begun; only the model's loop touches it.
        self._open: set[AsyncGenerator[dict[str, Any], None]] = set()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.Runner(loop_factory=_new_loop).run(self._live(started)),
            name="msmlp-model",
            daemon=True,
        )
        self._thread.start()
        started.result()

    def classify(self, images: Images, *, request_id: str | None = None, **options: Unpack[Options]) -> Answer:
        """Classify one image or several: paths, encoded or open files, Pillow images, uint8 arrays.

        Raises:
            ServiceError: with the status and the code that a service would have answered.
            OSError, TypeError, ValueError: an image cannot be read or has the wrong type or shape.
        """
        request = _Request(images, request_id, as_text(options))
        with request.errors():
            return Answer(self._run(self._answered(request)))

    __call__ = classify

    def stream(
        self, images: Images, *, request_id: str | None = None, **options: Unpack[Options]
    ) -> Iterator[StreamLine]:
        """Like `classify`, but yields a line per image and exit as soon as it is reached, from the first `next` on."""
        return self._lines(_Request(images, request_id, {**as_text(options), "stream": "true"}))

    def model(self) -> dict[str, Any]:
        """The document of `GET /model`: exits, costs, operating points."""
        return self._service.describe()

    def close(self) -> None:
        """Answer what is in flight, then end the engine."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._closing.set)
            self._closed = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _live(self, started: Future[None]) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()

        def observe(message: Outbound) -> None:
            if isinstance(message, Ready) and not started.done():
                started.set_result(None)
            elif isinstance(message, Died) and not started.done():
                started.set_exception(DeviceError(f"the engine could not start: {message.detail}"))
                self._closing.set()

        self._service.engine.watch(observe)
        self._service.engine.start()
        await self._closing.wait()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        # One by one, each from its outermost generator inward: asyncio's own end of them knows no order.
        for documents in [*self._open]:
            await self._end(documents)
        await self._service.engine.stop()
        self._service.decoders.shutdown()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` on the model's loop; an interrupted caller cancels it."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("the model is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                # Python loses the wake-up of a Ctrl-C that comes just before a wait begins; the next wait notices it.
                with suppress(FutureTimeoutError):
                    return future.result(INTERRUPT_SECONDS)
                if future.done():
                    return future.result()
        finally:
            future.cancel()

    async def _answered(self, request: "_Request") -> dict[str, Any]:
        return await classify(self._service, request.call(self._service))

    async def _landing(self, request: "_Request") -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(stream(self._service, request.call(self._service))) as documents:
            async for document in documents:
                yield document

    def _lines(self, request: "_Request") -> Iterator[StreamLine]:
        documents = self._landing(request)
        with request.errors():
            try:
                while (document := self._run(self._next(documents))) is not None:
                    yield StreamLine(document)
            finally:
                if not self._closed:
                    self._run(self._end(documents))

    async def _next(self, documents: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
        self._open.add(documents)
        return await anext(documents, None)

    async def _end(self, documents: AsyncGenerator[dict[str, Any], None]) -> None:
        self._open.discard(documents)
        await documents.aclose()


class _Request:
    """Images, options and id, as a service has them once it has read the body."""

    def __init__(self, images: Images, request_id: str | None, options: dict[str, str]) -> None:
        self._images, self._options = read_images(images), options
        self._id = request_id or uuid.uuid4().hex

    def call(self, service: Service) -> ClassifyRequest:
        """The request, arriving now.

        Raises:
            MsmlpError: what the service refuses before it looks at the images.
        """
        arrival = time.monotonic()
        service.check_ready()
        count, most = len(self._images), service.max_images
        if count > most:
            raise TooManyImagesError(f"{count} images in one request; at most {most} are allowed")
        return ClassifyRequest(self._images, parse_options(self._options), RequestRecord(self._id, arrival))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors into those that a service would report."""
        try:
            yield
        except MsmlpError as error:
            retry_after = error.retry_after if isinstance(error, RetryableError) else None
            raise ServiceError.of_problem(problem(error, self._id)[1], retry_after) from error
