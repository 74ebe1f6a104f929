"""From a request's images and options to its answer: what the routes, gRPC and `msmlp.load` share."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.exits.rule import Reason
from msmlp.service.decoding import Sources, decode_images
from msmlp.service.engine.admission import Permits
from msmlp.service.engine.messages import ExitParameters, history_floats, history_ints
from msmlp.service.engine.result import REASONS, Result
from msmlp.service.errors import ExpiredError, OverloadedError
from msmlp.service.operating_points import ResolvedPoint
from msmlp.service.options import DEFAULT_TOP_K, RequestOptions
from msmlp.service.service import Facts, Service
from msmlp.service.telemetry.record import RequestRecord

DIGITS = 8
"""Digits of probabilities: those that a float32 holds."""
# History's columns: score and confidence with as many digits, seconds as milliseconds with three.
_FINE, _COARSE = np.array([1e8, 1e8, 1e6, 1e6]), np.array([1e8, 1e8, 1e3, 1e3])


@dataclass(frozen=True)
class ClassifyRequest:
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
    parameters, permits = _admit(service, request)
    with permits:
        pixels = await _decode(service, request)
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
    parameters, permits = _admit(service, request)
    with permits:
        pixels = await _decode(service, request)
        async with aclosing(service.engine.stream(pixels, parameters, permits)) as results:
            async for result in results:
                _count(service, request, result.take(np.flatnonzero(result.reason != Reason.GOES_ON)))
                yield result


def _admit(service: Service, request: ClassifyRequest) -> tuple[ExitParameters, Permits]:
    options, record, images = request.options, request.record, len(request.images)
    record.images = images
    point = record.point = service.operating_points.resolve(options, service.engine.brownout.level)
    parameters = point.parameters
    if options.deadline_ms is not None or options.stream:
        parameters = replace(parameters, deadline=request.deadline, stream=bool(options.stream))
    try:
        return parameters, service.engine.admit(images, degraded=point.source == "brownout")
    except OverloadedError as error:
        service.metrics.shed.labels(error.reason).inc(images)
        raise


async def _decode(service: Service, request: ClassifyRequest) -> NDArray[np.uint8]:
    size, max_pixels = service.weights.manifest.cascade.image_size, service.settings.max_pixels
    began = time.monotonic()
    try:
        return await decode_images(request.images, size, max_pixels, service.decoders)
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
        "expected_gflops": point.expected_gflops,
    }


def image_answers(facts: Facts, request: ClassifyRequest, result: Result) -> list[dict[str, Any]]:
    best = (-result.probabilities).argsort(axis=1, kind="stable")[:, : request.options.top_k or DEFAULT_TOP_K]
    top = result.probabilities[np.arange(len(best))[:, None], best].astype(np.float64).round(DIGITS)
    history, record, deadline = result.history, request.record, request.deadline
    degraded = record.point is not None and record.point.source == "brownout"
    answers = []
    for index, exit, reason, classes, probabilities, measured, counted, landed in zip(
        result.index.tolist(),
        result.exit.tolist(),
        result.reason.tolist(),
        best.tolist(),
        top.tolist(),
        ((history_floats(history) * _FINE).round() / _COARSE).tolist(),
        history_ints(history).tolist(),
        result.landed.tolist(),
        strict=True,
    ):
        stages = _stages(facts.classes, measured[:exit], counted[:exit])
        answer = {
            "index": index,
            **_outcome(facts.classes, exit, stages, classes, probabilities),
            "exits": len(facts.gflops),
            "reason": REASONS[reason],
            "gflops": facts.gflops[exit - 1] if exit else 0.0,
            "degraded": degraded,
            "stages": stages,
            "latency_ms": _ms(landed - record.arrival),
        }
        if deadline < math.inf:
            answer["deadline_margin_ms"] = _ms(deadline - landed)
        answers.append(answer)
    return answers


def _outcome(
    names: tuple[str, ...],
    exit: int,
    stages: list[dict[str, Any]],
    classes: list[int],
    probabilities: list[float],
) -> dict[str, Any]:
    """An image's answer at its exit; null if it expired before the first."""
    if not exit:
        return {"label": None, "class_id": None, "confidence": None, "score": None, "top_k": [], "exit": None}
    last = stages[-1]
    return {
        "label": last["label"],
        "class_id": classes[0],
        "confidence": last["confidence"],
        "score": last["score"],
        "top_k": [
            {"label": names[c], "class_id": c, "probability": p} for c, p in zip(classes, probabilities, strict=True)
        ],
        "exit": exit,
    }


def _stages(classes: tuple[str, ...], measured: list[list[float]], counted: list[list[int]]) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "score": score,
            "confidence": confidence,
            "label": classes[class_id],
            "queue_ms": queue_ms,
            "compute_ms": compute_ms,
            "batch_size": batch_size,
        }
        for stage, ((score, confidence, queue_ms, compute_ms), (class_id, batch_size)) in enumerate(
            zip(measured, counted, strict=True), 1
        )
    ]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
