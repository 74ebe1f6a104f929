"""From images and options to answers: what the routes and `msmlp.load` share."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import MsmlpError
from model.exits import Reason
from service.answers import Inquiry, answer_document, image_answers, operating_point
from service.decoding import Sources, decode_images
from service.engine.messages import Terms
from service.engine.result import Result
from service.errors import ExpiredError
from service.options import RequestOptions
from service.state import Service

TOP_K = 5


@dataclass(frozen=True)
class Call:
    """A request: images (encoded, or pixels), options, and when it arrived (monotonic seconds)."""

    images: Sources
    options: RequestOptions
    request_id: str
    arrival: float


@dataclass(frozen=True)
class Outcome:
    """What came of a call, and the seconds of decoding and of the longest queueing and compute of any image."""

    result: Result
    inquiry: Inquiry
    decode_seconds: float
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class Answered:
    """The contract's answer, and what it was written from."""

    document: dict[str, Any]
    outcome: Outcome


@dataclass(frozen=True)
class Landing:
    """Images of a stream that passed an exit together, and which of them go on to the next."""

    result: Result
    inquiry: Inquiry
    goes_on: NDArray[np.bool_]


@dataclass(frozen=True)
class _Prepared:
    """Decoded images with their places in the engine, and what the request wants of it."""

    pixels: NDArray[np.uint8]
    inquiry: Inquiry
    terms: Terms
    decode_seconds: float
    give_back: Callable[[int], None]


async def classify(service: Service, call: Call) -> Answered:
    """Classify the images of a call, and write the contract's answer; raises what `run` raises."""
    outcome = await run(service, call)
    throughput = service.engine.throughput.per_second(time.monotonic())
    return Answered(answer_document(service.facts, outcome.inquiry, outcome.result, throughput), outcome)


async def run(service: Service, call: Call) -> Outcome:
    """Classify the images of a call.

    Raises:
        OptionError, BadImagesError: the caller's mistake.
        OverloadedError, StartingError, EngineDownError: not now.
        ExpiredError: no image reached an exit by the deadline.
    """
    try:
        async with _prepared(service, call) as prepared:
            result = await service.engine.classify(prepared.pixels, prepared.terms)
        _count(service, call, prepared, result)
        _refuse_expired(result, call)
    except MsmlpError:
        service.statistics.failed(time.monotonic() - call.arrival)
        raise
    seconds = result.history.seconds
    done = np.arange(seconds.shape[1]) < result.exit[:, None]
    queue, compute = (seconds * done[:, :, None]).sum(axis=1).max(axis=0).tolist()
    total = time.monotonic() - call.arrival
    service.statistics.answered(
        len(call.images), total=total, decode=prepared.decode_seconds, queue=queue, compute=compute
    )
    return Outcome(result, prepared.inquiry, prepared.decode_seconds, queue, compute)


async def stream(service: Service, call: Call) -> AsyncGenerator[dict[str, Any], None]:
    """One document an image and exit, as it lands; an image's last says `final` and has the operating point.

    Raises:
        what `landings` raises.
    """
    async with aclosing(landings(service, call)) as landed_together:
        async for landing in landed_together:
            answers = image_answers(service.facts, landing.inquiry, landing.result)
            final = {"final": True, "operating_point": operating_point(landing.inquiry.plan)}
            for answer, more_comes in zip(answers, landing.goes_on.tolist(), strict=True):
                yield {"request_id": call.request_id, **answer, **({"final": False} if more_comes else final)}


async def landings(service: Service, call: Call) -> AsyncGenerator[Landing, None]:
    """What passes an exit, as it does.

    Raises:
        what `run` raises; nothing but EngineDownError once something was yielded.
    """
    async with (
        _prepared(service, call) as prepared,
        aclosing(service.engine.stream(prepared.pixels, prepared.terms, prepared.give_back)) as results,
    ):
        async for result in results:
            goes_on = result.reason == Reason.GOES_ON
            _count(service, call, prepared, result.take(np.flatnonzero(~goes_on)))
            _refuse_expired(result, call)
            yield Landing(result, prepared.inquiry, goes_on)


@asynccontextmanager
async def _prepared(service: Service, call: Call) -> AsyncIterator[_Prepared]:
    options = call.options
    plan = service.policy.plan(options, service.engine.brownout_level)
    deadline = float("inf") if options.deadline_ms is None else call.arrival + options.deadline_ms / 1e3
    with service.places(len(call.images), degraded=plan.source == "brownout") as give_back:
        started = time.monotonic()
        size, max_pixels = service.weights.manifest.cascade.image_size, service.settings.max_pixels
        try:
            pixels = await decode_images(call.images, size, max_pixels, service.decoders)
        except asyncio.CancelledError:
            service.metrics.cancelled.labels("decode").inc(len(call.images))
            raise
        terms = Terms(plan.thresholds, plan.min_exit, plan.max_exit, deadline, bool(options.stream))
        inquiry = Inquiry(call.request_id, call.arrival, plan, options.top_k or TOP_K, deadline)
        yield _Prepared(pixels, inquiry, terms, time.monotonic() - started, give_back)


def _count(service: Service, call: Call, prepared: _Prepared, result: Result) -> None:
    service.metrics.answered(result, service.facts.gflops, call.arrival, prepared.terms.deadline)
    service.metrics.gflops_expected.inc(len(result.index) * prepared.inquiry.plan.expected_gflops)


def _refuse_expired(result: Result, call: Call) -> None:
    if len(result.index) == len(call.images) and (result.exit == 0).all():
        raise ExpiredError("no image reached an exit by its deadline")
