"""From images and options to answers: what the routes and `msmlp.load` share."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import Reason
from msmlp.service.answers import Inquiry, answer_document, image_answers, operating_point
from msmlp.service.decoding import Sources, decode_images
from msmlp.service.engine.messages import Terms
from msmlp.service.engine.result import Result
from msmlp.service.errors import ExpiredError
from msmlp.service.options import RequestOptions
from msmlp.service.service import Service
from msmlp.service.telemetry.record import Account

TOP_K = 5


@dataclass(frozen=True)
class Call:
    """A request: images (encoded, or pixels), options, and the account that is kept of it."""

    images: Sources
    options: RequestOptions
    account: Account


@dataclass(frozen=True)
class Outcome:
    """What came of a call."""

    result: Result
    inquiry: Inquiry


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
    give_back: Callable[[int], None]


async def classify(service: Service, call: Call) -> dict[str, Any]:
    """Classify the images of a call → the JSON answer; raises what `run` raises."""
    outcome = await run(service, call)
    throughput = service.engine.throughput.per_second(time.monotonic())
    return answer_document(service.facts, outcome.inquiry, outcome.result, throughput)


async def run(service: Service, call: Call) -> Outcome:
    """Classify the images of a call.

    Raises:
        OptionError, BadImagesError: the caller's mistake.
        OverloadedError, StartingError, EngineDownError: not now.
        ExpiredError: no image reached an exit by the deadline.
    """
    async with _prepared(service, call) as prepared:
        result = await service.engine.classify(prepared.pixels, prepared.terms)
    _count(service, call, prepared, result)
    _refuse_expired(result, call)
    return Outcome(result, prepared.inquiry)


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
                yield {"request_id": call.account.request_id, **answer, **({"final": False} if more_comes else final)}


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
    options, account = call.options, call.account
    account.images = len(call.images)
    plan = service.policy.plan(options, service.engine.brownout_level)
    deadline = float("inf") if options.deadline_ms is None else account.arrival + options.deadline_ms / 1e3
    account.plan = plan
    with service.places(len(call.images), degraded=plan.source == "brownout") as give_back:
        size, max_pixels = service.weights.manifest.cascade.image_size, service.settings.max_pixels
        began = time.monotonic()
        try:
            pixels = await decode_images(call.images, size, max_pixels, service.decoders)
        except asyncio.CancelledError:
            service.metrics.cancelled.labels("decode").inc(len(call.images))
            raise
        finally:
            account.decoding = began, time.monotonic()
        terms = Terms(plan.thresholds, plan.min_exit, plan.max_exit, deadline, bool(options.stream))
        inquiry = Inquiry(account.request_id, account.arrival, plan, options.top_k or TOP_K, deadline)
        yield _Prepared(pixels, inquiry, terms, give_back)


def _count(service: Service, call: Call, prepared: _Prepared, result: Result) -> None:
    spent = service.metrics.answered(result, service.facts.gflops, call.account.arrival, prepared.terms.deadline)
    service.metrics.gflops_expected.inc(len(result.index) * prepared.inquiry.plan.expected_gflops)
    call.account.land(result, spent)


def _refuse_expired(result: Result, call: Call) -> None:
    if len(result.index) == len(call.images) and (result.exit == 0).all():
        raise ExpiredError("no image reached an exit by its deadline")
