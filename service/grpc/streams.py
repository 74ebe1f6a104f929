"""ModelStreamInfer: many requests and many answers on one call."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from msmlp.model.errors import MsmlpError
from msmlp.service.answers import REASONS
from msmlp.service.errors import OverloadedError
from msmlp.service.grpc.calls import Refusal, accounted, new_account, refusal_of, refuse, unhurried
from msmlp.service.grpc.inferences import Question, answer, understood
from msmlp.service.grpc.intake import Context, Intake
from msmlp.service.grpc.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    parse,
    set_parameters,
    write_response,
)
from msmlp.service.inference import Landing, landings
from msmlp.service.oip.service import answer_head, answer_tensors
from msmlp.service.service import Service
from msmlp.service.telemetry.record import STREAM, Account

METHOD = "ModelStreamInfer"

IDLE_SECONDS = 60
"""How long a stream may have nothing to do: it holds one of the few places there are for streams."""

AT_ONCE = 64
"""Requests of one stream that are worked on at the same time; the next is read when one has been answered."""


def stream_handler(service: Service, intake: Intake, ending: asyncio.Event) -> Any:
    """The method; once `ending` is set, streams read no more, answer what they have read, and are refused."""

    async def handle(_: Any, context: Context) -> None:
        account = new_account(METHOD, context)
        account.method = STREAM  # none of its requests, which have accounts of their own
        try:
            with intake.stream():
                await _Stream(service, intake, context).serve(ending)
            if ending.is_set():
                service.check_ready()
        except MsmlpError as error:
            refusal = refusal_of(error)
            account.status = refusal.status
            service.accounts.close(account)
            await refuse(context, refusal)

    return grpc.stream_stream_rpc_method_handler(handle)


@dataclass
class _Request:
    """One of a stream; its id is known once it could be read."""

    content: bytes
    account: Account
    id: str = ""


class _Stream:
    def __init__(self, service: Service, intake: Intake, context: Context) -> None:
        self._service, self._intake, self._context = service, intake, context
        self._writing = asyncio.Lock()
        self._newest: asyncio.Task[None] | None = None  # whose end is that of all before it
        self._busy_until = time.monotonic()
        self._idle_too_long = False

    async def serve(self, ending: asyncio.Event) -> None:
        """Answer every request; all at once, but what has one answer is answered in the order of the requests.

        Raises:
            OverloadedError: nothing was asked for IDLE_SECONDS.
        """
        free = asyncio.Semaphore(AT_ONCE)
        ended = asyncio.create_task(ending.wait())

        def done(_: "asyncio.Task[None]") -> None:
            self._busy_until = time.monotonic()
            free.release()

        try:
            async with asyncio.TaskGroup() as group:
                while (content := await self._next(ended)) is not None:
                    await free.acquire()
                    request = _Request(content, new_account(METHOD, self._context))
                    self._newest = group.create_task(self._serve(request, self._newest))
                    self._newest.add_done_callback(done)
        finally:
            ended.cancel()
        if self._idle_too_long:
            raise OverloadedError(f"nothing came for {IDLE_SECONDS} s; open a stream when there is something to ask")

    async def _next(self, ended: "asyncio.Task[Any]") -> bytes | None:
        """The next request; None when the client has sent its last, the stream is idle too long, or the server ends."""
        reading = asyncio.ensure_future(self._context.read())
        try:
            while not (reading.done() or ended.done()) and (idle := self._idle_seconds()) < IDLE_SECONDS:
                await asyncio.wait([reading, ended], timeout=IDLE_SECONDS - idle, return_when=asyncio.FIRST_COMPLETED)
            self._idle_too_long = not (reading.done() or ended.done())
            content = reading.result() if reading.done() else None
        finally:
            reading.cancel()
        return content if isinstance(content, bytes) else None

    def _idle_seconds(self) -> float:
        """How long nothing has been under way."""
        busy = self._newest is not None and not self._newest.done()
        return 0.0 if busy else time.monotonic() - self._busy_until

    async def _serve(self, request: _Request, before: "asyncio.Task[None] | None") -> None:
        answered = await accounted(self._service.accounts, request.account, self._answer(request))
        if before is not None:
            await asyncio.wait([before])
        if isinstance(answered, Refusal):
            await self._write(ModelInferResponse(id=request.id), final=True, error=answered.detail)
        elif answered is not None:
            await self._write(answered, final=True)

    async def _answer(self, request: _Request) -> Any:
        """The one response, not yet sent; None when there were several, which are."""
        self._service.check_ready()
        content, request.content = request.content, b""  # not held until it is the response's turn to be sent
        size = len(content)
        with self._intake.holding(content):
            message = await unhurried(size, lambda: parse(ModelInferRequest, content))
            request.id = message.id
            question = await understood(self._service, message, size, request.account)
            if not question.call.options.stream:
                return await answer(self._service, question)
            await self._land(question)
        return None

    async def _land(self, question: Question) -> None:
        """A response an image and exit, as it lands."""
        to_come = len(question.call.images)
        async with aclosing(landings(self._service, question.call)) as landed_together:
            async for landing in landed_together:
                for row, goes_on in enumerate(landing.goes_on.tolist()):
                    to_come -= not goes_on
                    await self._write(_landed(self._service, question, landing, row), final=to_come == 0)

    async def _write(self, response: Any, *, final: bool, error: str = "") -> None:
        """Send a response; `final`: its request's last, in the words of Triton's models that send several."""
        set_parameters(response, {"triton_final_response": final})
        message = ModelStreamInferResponse(error_message=error, infer_response=response)
        try:
            async with self._writing:
                await self._context.write(message.SerializeToString())
        except grpc.aio.BaseError:
            raise asyncio.CancelledError from None  # the client has left


def _landed(service: Service, question: Question, landing: Landing, row: int) -> Any:
    """What one image is, or would be, at an exit."""
    result = landing.result.take(np.array([row]))
    head = answer_head(service, question.name, question.inference, landing.inquiry)
    head["parameters"] |= {
        "index": int(result.index[0]),
        "reason": REASONS[int(result.reason[0])],
        "final": not landing.goes_on[row],
    }
    return write_response(head, answer_tensors(service, question.inference, result))
