"""From a request's images and options to its answer: what the routes, gRPC and `msmlp.load` share."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import Reason
from msmlp.service.decoding.decoders import Sources, no_count
from msmlp.service.engine.admission import Permits
from msmlp.service.engine.messages import ExitParameters
from msmlp.service.engine.result import REASONS, Result
from msmlp.service.errors import ExpiredError, OverloadedError
from msmlp.service.operating_points import ResolvedPoint
from msmlp.service.options import DEFAULT_TOP_K, RequestOptions
from msmlp.service.service import Facts, Service
from msmlp.service.telemetry.record import RequestRecord

FINE = 1e8
"""Probabilities have as many digits as a float32 holds. The rest is cut off, so that a score that is sent back as a
threshold lets its image exit. `round` takes five times as long."""


class ClassifyRequest(NamedTuple):
    """Images (encoded, or pixels), options, and the request's record, which has its id and its arrival."""

    images: Sources
    options: RequestOptions
    record: RequestRecord

    @property
    def deadline(self) -> float:
        """Monotonic seconds; inf without one."""
        milliseconds = self.options.deadline_ms
        return math.inf if milliseconds is None else self.record.arrival + milliseconds / 1e3


async def classify(service: Service, request: ClassifyRequest) -> dict[str, Any]:
    """Classify the images of a request → the answer of `POST /classify`; raises what `run` raises."""
    result = await run(service, request)
    return answer_document(service.facts, request, result, service.images_per_second())


async def run(service: Service, request: ClassifyRequest) -> Result:
    """Classify the images of a request; its operating point is in its record then.

    Raises:
        OptionError, BadImagesError: the caller's mistake.
        OverloadedError, StartingError, EngineDownError: not now.
        ExpiredError: no image reached an exit by the deadline.
    """
    if service.turns.full():
        await service.turns.wait()
    parameters, permits = _admit(service, request)
    with permits:
        pixels = await _decode(service, request, parameters)
        result = await service.engine.classify(pixels, parameters, permits)
    _count(service, request, result)
    return result


async def stream(service: Service, request: ClassifyRequest) -> AsyncGenerator[dict[str, Any], None]:
    """One document per image and exit, as it is reached; an image's last is `final` and has the operating point.

    Raises:
        what `run` raises; only EngineDownError once something was yielded.
    """
    async with aclosing(run_stream(service, request)) as results:
        async for result in results:
            for answer in image_answers(service.facts, request, result):
                final: dict[str, Any] = {"final": False}
                if answer["reason"] != REASONS[Reason.GOES_ON]:
                    final = {"final": True, "operating_point": operating_point(request.record.point)}
                yield {"request_id": request.record.request_id, **answer, **final}


async def run_stream(service: Service, request: ClassifyRequest) -> AsyncGenerator[Result, None]:
    """Images that passed an exit together, as they do; the reason is GOES_ON for those that stay.

    Raises:
        what `stream` raises.
    """
    if service.turns.full():
        await service.turns.wait()
    parameters, permits = _admit(service, request)
    with permits:
        pixels = await _decode(service, request, parameters)
        async with aclosing(service.engine.stream(pixels, parameters, permits)) as results:
            async for result in results:
                _count(service, request, result.take(np.flatnonzero(result.reason != Reason.GOES_ON)))
                yield result


def _admit(service: Service, request: ClassifyRequest) -> tuple[ExitParameters, Permits]:
    options, record, images = request.options, request.record, len(request.images)
    record.images = images
    level = service.engine.brownout.level and service.engine.level_now()
    point = record.point = service.operating_points.resolve(options, level)
    parameters = point.parameters
    if options.deadline_ms is not None or options.stream:
        parameters = replace(parameters, deadline=request.deadline, stream=bool(options.stream))
    try:
        return parameters, service.engine.admit(images, degraded=point.source == "brownout")
    except OverloadedError as error:
        service.metrics.shed.labels(error.reason).inc(images)
        raise


async def _decode(service: Service, request: ClassifyRequest, parameters: ExitParameters) -> NDArray[np.uint8]:
    images, views = request.images, service.weights.manifest.views
    began, key, keys = time.monotonic(), request.record.key, service.keys.api
    count = no_count if key is None or keys is None else partial(keys.spend, key)
    try:
        small = service.decoders.at_once(images, views, count)
        if small is not None:
            return small
        deadline = math.inf if parameters.min_exit else parameters.deadline
        check = service.engine.decoding_check(len(images))
        return await service.decoders.decode(images, views, deadline=deadline, check=check, count=count)
    except OverloadedError as error:
        service.engine.admission.book_decoding(error, time.monotonic())
        service.metrics.shed.labels(error.reason).inc(len(images))
        raise
    except asyncio.CancelledError:
        service.metrics.cancelled.labels("decode").inc(len(request.images))
        raise
    finally:
        request.record.decoding = began, time.monotonic()


def _count(service: Service, request: ClassifyRequest, result: Result) -> None:
    """Images have been answered; ExpiredError if they are all of the request's, and none reached an exit."""
    record, point, exits = request.record, request.record.point, result.exit.tolist()
    assert point is not None
    spent, expected = sum(map(service.facts.spent.__getitem__, exits)), len(exits) * point.expected_gflops
    service.metrics.answered(result, record, request.deadline, spent=spent, expected=expected)
    record.land(result, spent)
    if len(exits) == len(request.images) and not any(exits):
        raise ExpiredError("no image reached an exit by its deadline")


def answer_document(facts: Facts, request: ClassifyRequest, result: Result, throughput: float) -> dict[str, Any]:
    record = request.record
    return {
        "request_id": record.request_id,
        "model": facts.model,
        "operating_point": operating_point(record.point),
        "results": image_answers(facts, request, result),
        "latency_ms": _ms(time.monotonic() - record.arrival),
        "throughput_images_per_second": round(throughput, 1),
    }


def operating_point(point: ResolvedPoint | None) -> dict[str, Any]:
    assert point is not None  # not before the request was admitted
    return {
        "name": point.name,
        "source": point.source,
        "thresholds": point.parameters.thresholds.tolist(),
        "expected_accuracy": point.expected_accuracy,
        "standard_error": point.standard_error,
        "expected_gflops": point.expected_gflops,
    }


def image_answers(facts: Facts, request: ClassifyRequest, result: Result) -> list[dict[str, Any]]:
    probabilities, record = result.probabilities, request.record
    best = (-probabilities).argsort(axis=1, kind="stable")[:, : request.options.top_k or DEFAULT_TOP_K]
    top = probabilities[np.arange(len(best))[:, None], best].tolist()
    degraded = record.point is not None and record.point.source == "brownout"
    exits, costs, timed = len(facts.gflops), facts.spent, request.deadline < math.inf
    answers = []
    for index, exit, reason, classes, likely, history, landed in zip(
        result.index.tolist(),
        result.exit.tolist(),
        result.reason.tolist(),
        best.tolist(),
        top,
        result.history.tolist(),
        result.landed.tolist(),
        strict=True,
    ):
        stages = _stages(facts.classes, history[:exit])
        answer = {
            "index": index,
            **(_outcome(facts.classes, stages[-1], classes, likely) if exit else NO_OUTCOME),
            "exits": exits,
            "reason": REASONS[reason],
            "gflops": costs[exit],
            "degraded": degraded,
            "stages": stages,
            "latency_ms": _ms(landed - record.arrival),
        }
        if timed:
            answer["deadline_margin_ms"] = round(1e3 * (request.deadline - landed), 3)
        answers.append(answer)
    return answers


NO_OUTCOME: dict[str, Any] = {
    "label": None,
    "class_id": None,
    "confidence": None,
    "score": None,
    "top_k": [],
    "exit": None,
}
"""Of an image that expired before the first exit."""


def _outcome(
    names: tuple[str, ...], last: dict[str, Any], classes: list[int], probabilities: list[float]
) -> dict[str, Any]:
    """An image's answer at its exit, whose stage was the `last`."""
    return {
        "label": last["label"],
        "class_id": classes[0],
        "confidence": last["confidence"],
        "score": last["score"],
        "top_k": [
            {"label": names[c], "class_id": c, "probability": int(FINE * p) / FINE}
            for c, p in zip(classes, probabilities, strict=True)
        ],
        "exit": last["stage"],
    }


def _stages(names: tuple[str, ...], history: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "score": int(FINE * score) / FINE,
            "confidence": int(FINE * confidence) / FINE,
            "label": names[class_id],
            "queue_ms": _ms(queue_seconds),
            "compute_ms": _ms(compute_seconds),
            "batch_size": batch_size,
        }
        for stage, (score, confidence, queue_seconds, compute_seconds, class_id, batch_size) in enumerate(history, 1)
    ]


def _ms(seconds: float) -> float:
    return int(1e6 * seconds + 0.5) / 1e3
