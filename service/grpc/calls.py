"""What requests over gRPC share: reading messages, records, errors as status codes, answers to a ModelInferRequest."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import grpc

from msmlp.model.errors import MsmlpError
from msmlp.service.engine.result import Result
from msmlp.service.errors import (
    CLIENT_CLOSED_REQUEST,
    SERVER_FAILED,
    BodyTimeoutError,
    BodyTooLargeError,
    OverloadedError,
    RateLimitedError,
    RetryableError,
    ShortOfMemoryError,
    UnansweredError,
    problem,
)
from msmlp.service.grpc.messages import ModelInferRequest, parse, read_inference, write_response
from msmlp.service.grpc.wire import check_message, check_parts
from msmlp.service.inference import ClassifyRequest
from msmlp.service.keys import Key
from msmlp.service.logs import sane_id
from msmlp.service.memory import free_frames
from msmlp.service.oip.model import check_model, oip_error, response_head
from msmlp.service.oip.request import Inference, Limits
from msmlp.service.oip.response import output_tensors
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RPC, RequestRecord, RequestRecords

T = TypeVar("T")
Context = grpc.aio.ServicerContext[bytes, bytes]
log = logging.getLogger("msmlp.grpc")

CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    # Not RESOURCE_EXHAUSTED, on which clients retry: what is too large now will be too large later.
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
}
"""From REST's statuses, which the metrics use too."""

SMALL_BYTES = 2**16
"""Messages up to this size are handled on the event loop: a thread costs more."""
TINY_BYTES = 2**12
"""Messages up to this size are parsed unseen: they cannot have much."""

TURN_SECONDS = 30
"""How long a call may wait for its turn."""

ARRIVAL = 3
"""How many `--body-seconds` its message may then take; one while others wait. How fast it comes cannot be seen here."""

STALL_SECONDS = 1.0
"""A call whose message has not come for this long makes room if others wait and none of theirs has come either."""

SHARE = 4
"""One client may have one turn in this many, and as many streams; at least one of each."""


class _Turns(asyncio.Semaphore):
    """Turns that calls take, how many calls wait for one, and how many streams there are."""

    waiting = streams = 0
    came = 0.0
    """When the last message did, by the loop's clock."""

    async def acquire(self) -> Literal[True]:
        self.waiting += 1
        try:
            return await super().acquire()
        finally:
            self.waiting -= 1


class _Arrival:
    """Looks from time to time whether a message takes too long, and others wait for the `turns` that it holds.

    `seconds` are `--body-seconds`, 0 for no limit; `limit` is what ends the arrival.
    """

    limit: asyncio.Timeout

    def __init__(self, turns: Sequence[_Turns], seconds: float) -> None:
        self._turns, self._seconds, self._pause = turns, seconds, min(STALL_SECONDS, seconds)
        self.passed = 0.0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_later(self._pause, self._look) if seconds else None

    def _look(self) -> None:
        self.passed, now = self.passed + self._pause, self._loop.time()
        wanted = [turns for turns in self._turns if turns.waiting]
        # Who waits has less time to wait where messages come: then a slow one is not ended.
        stuck = any(now - turns.came >= self._pause for turns in wanted)
        if stuck or self.passed >= self._seconds * (1 if wanted else ARRIVAL):
            self.limit.reschedule(now)
        else:
            self._next = self._loop.call_later(self._pause, self._look)

    def end(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None  # which has this


class Intake:
    """Reads the messages of one server, within bounds on the memory they take.

    gRPC collects a message in memory, up to `--max-body-bytes`, as soon as a handler reads it. So only a few calls read
    at a time; a message that has arrived counts against `--max-bodies-bytes`, as bodies over HTTP do.
    """

    def __init__(self, service: Service) -> None:
        self._budget, self._max_bytes = service.body_budget, service.settings.max_body_bytes
        self._seconds, self._late = service.settings.body_seconds, service.metrics.timeouts.labels("body")
        self._admission, self._shed = service.engine.admission, service.metrics.shed.labels("door")
        self._full = service.metrics.shed.labels("memory")
        self._most = max(1, self._budget.limit // self._max_bytes)
        self._turns = _Turns(self._most)
        self._clients: WeakValueDictionary[str, _Turns] = WeakValueDictionary()  # those that have calls
        self._share = max(1, self._most // SHARE)

    def _own(self, context: Context) -> _Turns:
        """The turns of one client; they exist while somebody holds them."""
        return self._clients.setdefault(_client(context.peer()), _Turns(self._share))

    @asynccontextmanager
    async def message(self, context: Context) -> AsyncIterator[bytes]:
        """The one message of a call, counted inside.

        Raises:
            BodyTimeoutError, BodyTooLargeError, OverloadedError
        """
        own = self._own(context)
        try:
            async with asyncio.timeout(TURN_SECONDS) as patience, own, self._turns:
                patience.reschedule(None)
                content = await self._arrival(context, own)
        except TimeoutError:
            self._full.inc()
            raise OverloadedError(f"too many calls are sending messages, the maximum is {self._most}") from None
        if not isinstance(content, bytes):  # gRPC refused the call itself, or the client sent nothing
            raise BodyTooLargeError(f"no message was sent, or it has more than {self._max_bytes} bytes")
        with self.working(len(content)):
            yield content

    def knock(self) -> None:
        """Raise OverloadedError when there is too much work already, before a message is read; `shed` counts it."""
        if self._admission.door.closed(now := time.monotonic()):
            self._shed.inc()
            raise self._admission.turn_away(0, now)

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """A message of `size` bytes is in work inside."""
        with self._budget.holding(size):
            work = self._admission.door.enter(size)
            try:
                yield
            finally:
                self._admission.door.leave(work)

    async def _arrival(self, context: Context, own: _Turns) -> Any:
        """What the client of a call that has its turn sends; `own` are the turns of that client."""
        arrival = _Arrival((own, self._turns), self._seconds)
        try:
            async with asyncio.timeout(None) as arrival.limit:
                # In no task of its own: a call that gRPC refuses would be cancelled first.
                content = await context.read()
        except TimeoutError:
            self._late.inc()
            raise BodyTimeoutError(f"the message did not arrive within {arrival.passed:g} s") from None
        finally:
            arrival.end()
        own.came = self._turns.came = asyncio.get_running_loop().time()
        return content

    @contextmanager
    def stream(self, context: Context) -> Iterator[None]:
        """A stream is open inside. It reads all the time, so streams have the same limits as calls that receive.

        Raises:
            OverloadedError
        """
        own = self._own(context)
        if self._turns.streams == self._most:
            self._full.inc()
            raise OverloadedError(f"{self._most} streams are open, the maximum is {self._most}")
        if own.streams == self._share:
            self._full.inc()
            raise OverloadedError(f"{self._share} streams of this client are open, the maximum is {self._share}")
        own.streams += 1
        self._turns.streams += 1
        try:
            yield
        finally:
            own.streams -= 1
            self._turns.streams -= 1


def _client(peer: str) -> str:
    """The address in gRPC's name of a client, such as ipv4:127.0.0.1:50000, without the port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


@dataclass(frozen=True)
class Refusal:
    """An error as the client sees it; `status` is REST's, `retry_after` in seconds."""

    status: int
    detail: str
    retry_after: int | None = None

    @classmethod
    def of(cls, error: MsmlpError) -> "Refusal":
        status, document = problem(error, "")
        status_of_protocol, body = oip_error(status, document["detail"])
        retry_after = error.retry_after if isinstance(error, RetryableError) else None
        return cls(status_of_protocol, body["error"], retry_after)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """gRPC's name for Retry-After."""
        return () if self.retry_after is None else (("retry-pushback-ms", str(self.retry_after * 1000)),)

    async def send(self, context: Context) -> None:
        try:
            await context.abort(CODES[HTTPStatus(self.status)], self.detail, self.metadata)
        except grpc.aio.AbortError as error:
            # The call keeps it, and raises it itself. Its frames have the call: a cycle of two dozen objects, and
            # collecting those of a flood of refused calls would hold up the event loop.
            free_frames(error)


INTERNAL = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, SERVER_FAILED)


def new_record(method: str, context: Context) -> RequestRecord:
    """The record of a request that has just arrived; its id is a new one until the client's is read."""

    def headers() -> Mapping[str, str]:
        return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}

    return RequestRecord(sane_id(""), time.monotonic(), RPC, f"grpc/{method}", headers)


def enter(service: Service, context: Context, record: RequestRecord, *, counts: bool = True) -> None:
    """Let a request in whose key is in its call's metadata, or raise UnauthorizedError or RateLimitedError; `counts`:
    against the limits of its key.
    """
    file = service.keys.api
    if file is None:
        return
    given = next((str(value) for name, value in context.invocation_metadata() or () if name == "authorization"), "")
    key = file.enter(given.encode()) if counts else file.check(given.encode())
    if isinstance(key, Key):
        record.key = key
        return
    if isinstance(key, RateLimitedError):
        service.metrics.shed.labels("key").inc()
    raise key


async def recorded(records: RequestRecords, record: RequestRecord, work: Awaitable[T]) -> T | Refusal:
    """The outcome of a request; the status in its record is what it would be over HTTP."""
    with records.open(record):
        record.status = CLIENT_CLOSED_REQUEST
        try:
            answer = await work
        except MsmlpError as error:
            refusal = Refusal.of(error)
            free_frames(error)
        except MemoryError as error:
            refusal = Refusal.of(ShortOfMemoryError())
            free_frames(error)
        except asyncio.CancelledError as error:
            free_frames(error)
            raise
        except Exception as error:
            # A failure below still has an answer and a row in the metrics.
            log.exception("%s failed", record.route)
            refusal = INTERNAL
            free_frames(error)
        else:
            record.status = HTTPStatus.OK
            return answer
        record.status = refusal.status
    return refusal


async def within(service: Service, work: Awaitable[T]) -> T:
    """The result of a whole request; UnansweredError if it takes longer than `--request-seconds`, DrainingError if it
    is cut as the service ends.
    """
    seconds = service.settings.request_seconds
    try:
        async with service.calls.within(seconds):
            return await work
    except TimeoutError:
        service.metrics.timeouts.labels("request").inc()
        raise UnansweredError(f"no answer was ready within {seconds:g} s") from None


async def _offload(service: Service, kind: str, size: int, work: Callable[[], T]) -> T:
    """The result of work on `size` bytes, in a thread if they are many, so that other requests do not wait."""
    return work() if size <= SMALL_BYTES else await service.parser.run(kind, size, work)


async def parsed(service: Service, content: bytes) -> Any:
    """The bytes of a ModelInferRequest → the message; MalformedBodyError if they are none, BodyTooLargeError."""

    def work() -> Any:
        if len(content) > SMALL_BYTES:
            check_message(content, service.settings.max_json_bytes)
        elif len(content) > TINY_BYTES:
            check_parts(content)
        return parse(ModelInferRequest, content)

    return await _offload(service, "message", len(content), work)


async def read_request(
    service: Service, message: Any, size: int, record: RequestRecord
) -> tuple[Inference, ClassifyRequest]:
    """A ModelInferRequest of `size` bytes: what it asks of the protocol, and what it asks to classify."""
    record.rename(message.id)
    check_model(service, message.model_name, message.model_version or None)
    limits = Limits(service.max_images, service.settings.max_pixels)
    inference = await _offload(service, "message inference", size, lambda: read_inference(message, limits))
    return inference, ClassifyRequest(inference.images, inference.options, record)


def response_to(
    service: Service, name: str, inference: Inference, record: RequestRecord, result: Result, **parameters: Any
) -> Any:
    """The ModelInferResponse for a result; `name` is the model's as the request had it."""
    head = response_head(service, name, inference.id, record)
    head["parameters"] |= parameters
    return write_response(head, output_tensors(result, inference.outputs, service.facts))
