"""ModelStreamInfer: many requests and many responses on one call."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from msmlp.model.errors import MsmlpError
from msmlp.model.exits.rule import Reason
from msmlp.service.engine.result import REASONS
from msmlp.service.errors import BodyTimeoutError, DrainingError, OverloadedError
from msmlp.service.grpc.calls import (
    Context,
    Intake,
    Refusal,
    enter,
    new_record,
    parsed,
    read_request,
    recorded,
    response_to,
    within,
)
from msmlp.service.grpc.messages import ModelInferResponse, ModelStreamInferResponse, set_parameters
from msmlp.service.inference import ClassifyRequest, run, run_stream
from msmlp.service.memory import free_frames
from msmlp.service.oip.request import Inference
from msmlp.service.service import Service
from msmlp.service.telemetry.record import STREAM, RequestRecord

METHOD = "ModelStreamInfer"

IDLE_SECONDS = 60
"""How long a stream may be idle: few can be open at a time."""

AT_ONCE = 64
"""Requests of one stream that are processed at a time; the next is read when one has been answered."""


def stream_handler(service: Service, intake: Intake) -> Any:
    """The handler; once `service.calls.closed`, streams read no more, answer what they have read, and are refused."""

    async def handle(_: Any, context: Context) -> None:
        record = new_record(METHOD, context)
        record.method = STREAM  # not one of its requests, which have records of their own
        try:
            enter(service, context, record, counts=False)  # its requests do
            await service.calls.flowing.wait()
            with intake.stream(context):
                await _Stream(service, intake, context).serve()
        except asyncio.CancelledError as error:
            free_frames(error)
            raise
        except MsmlpError as error:
            refusal = Refusal.of(error)
            free_frames(error)
            record.status = refusal.status
            service.records.close(record)
            await refusal.send(context)

    return grpc.stream_stream_rpc_method_handler(handle)


@dataclass
class _Request:
    """A request of a stream; its id is known once it was read."""

    content: bytes
    record: RequestRecord
    id: str = ""


class _Stream:
    def __init__(self, service: Service, intake: Intake, context: Context) -> None:
        self._service, self._intake, self._context = service, intake, context
        handler = asyncio.current_task()
        assert handler is not None
        self._handler, self._unread = handler, False
        self._writing = asyncio.Lock()
        self._newest: asyncio.Task[None] | None = None  # ends after all those before it
        self._busy_until = time.monotonic()
        self._idle_too_long = self._cut = False

    async def serve(self) -> None:
        """Process all requests concurrently; those with one response are answered in their order.

        Raises:
            DrainingError: this process ends before the client has.
            OverloadedError: the stream was idle for IDLE_SECONDS.
            BodyTimeoutError: the client does not read.
        """
        free = asyncio.Semaphore(AT_ONCE)
        ended = asyncio.create_task(self._service.calls.closed.wait())

        def done(_: "asyncio.Task[None]") -> None:
            self._busy_until = time.monotonic()
            free.release()

        try:
            async with asyncio.TaskGroup() as group:
                while (content := await self._next(ended)) is not None:
                    await free.acquire()
                    request = _Request(content, new_record(METHOD, self._context))
                    del content  # it would stay until the next has come
                    self._newest = group.create_task(self._serve(request, self._newest))
                    self._newest.add_done_callback(done)
        except asyncio.CancelledError:
            if not self._unread:
                raise
            self._handler.uncancel()
            raise BodyTimeoutError("a response was not read in time") from None
        finally:
            ended.cancel()
        if self._cut:
            raise DrainingError("this process of the service ends; open another stream")
        if self._idle_too_long:
            raise OverloadedError(f"the stream was idle for {IDLE_SECONDS} s; open one when there is a request to send")

    async def _next(self, ended: "asyncio.Task[Any]") -> bytes | None:
        """The next request; None when the client has sent its last, the stream is idle too long, or the server ends."""
        reading = asyncio.ensure_future(self._context.read())
        try:
            while not (reading.done() or ended.done()) and (idle := self._idle_seconds()) < IDLE_SECONDS:
                await asyncio.wait([reading, ended], timeout=IDLE_SECONDS - idle, return_when=asyncio.FIRST_COMPLETED)
            self._idle_too_long = not (reading.done() or ended.done())
            self._cut = ended.done() and not reading.done()
            content = reading.result() if reading.done() else None
        finally:
            reading.cancel()
        return content if isinstance(content, bytes) else None

    def _idle_seconds(self) -> float:
        """How long no request has been in progress."""
        busy = self._newest is not None and not self._newest.done()
        return 0.0 if busy else time.monotonic() - self._busy_until

    async def _serve(self, request: _Request, before: "asyncio.Task[None] | None") -> None:
        with self._service.calls.one():
            await self._respond(request, before)

    async def _respond(self, request: _Request, before: "asyncio.Task[None] | None") -> None:
        try:
            work = within(self._service, self._answer(request))
            answered = await recorded(self._service.records, request.record, work)
        finally:
            request.content = b""
        if before is not None:
            await asyncio.wait([before])
        if isinstance(answered, Refusal):
            await self._write(ModelInferResponse(id=request.id), final=True, error=answered.detail)
        elif answered is not None:
            await self._write(answered, final=True)

    async def _answer(self, request: _Request) -> Any:
        """The one response, not yet sent; None when there were several, which are."""
        service = self._service
        content, request.content = request.content, b""  # freed before the response, or refusal, waits for its turn
        enter(service, self._context, request.record)  # again: keys change
        service.check_ready()
        self._intake.knock()
        size = len(content)
        with self._intake.working(size):
            message = await parsed(service, content)
            request.id, name = message.id, message.model_name
            inference, asked = await read_request(service, message, size, request.record)
            if not inference.options.stream:
                return response_to(service, name, inference, request.record, await run(service, asked))
            await self._stream(name, inference, asked)
        return None

    async def _stream(self, name: str, inference: Inference, asked: ClassifyRequest) -> None:
        """One response per image and exit, as it is reached."""
        remaining = len(asked.images)
        async with aclosing(run_stream(self._service, asked)) as results:
            async for result in results:
                for row in range(len(result.index)):
                    image = result.take(np.array([row]))
                    index, reason = int(image.index[0]), int(image.reason[0])
                    final = reason != Reason.GOES_ON
                    remaining -= final
                    exit = {"index": index, "reason": REASONS[reason], "final": final}
                    response = response_to(self._service, name, inference, asked.record, image, **exit)
                    await self._write(response, final=remaining == 0)

    async def _write(self, response: Any, *, final: bool, error: str = "") -> None:
        """Send a response; `final`: the last of its request, in Triton's terms.

        One that the client does not read within `--body-seconds` ends the call, which has no other way to make room.
        """
        set_parameters(response, {"triton_final_response": final})
        message = ModelStreamInferResponse(error_message=error, infer_response=response)
        try:
            async with self._writing, asyncio.timeout(self._service.settings.body_seconds or None):
                await self._context.write(message.SerializeToString())
        except TimeoutError:
            self._service.metrics.timeouts.labels("answer").inc()
            self._unread = True
            self._handler.cancel()
            raise asyncio.CancelledError from None
        except grpc.aio.BaseError:
            raise asyncio.CancelledError from None  # the client has left
