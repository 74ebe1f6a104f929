"""From an engine's result to the contract's answer."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.exits import Reason
from service.engine.policy import Plan
from service.engine.result import Result

REASONS = {int(r): r.name.lower() for r in Reason}
NO_ANSWER: dict[str, Any] = {
    "label": None,
    "class_id": None,
    "confidence": None,
    "score": None,
    "top_k": [],
    "exit": None,
}
"""Of an image that expired before it reached an exit."""


@dataclass(frozen=True)
class Facts:
    """What does not change while a service runs: class names, and the cumulative GFLOPs of every exit [K]."""

    model: dict[str, str]
    classes: tuple[str, ...]
    gflops: list[float]


@dataclass(frozen=True)
class Inquiry:
    """What an answer must know of its request; `arrival` and `deadline` (inf without one) in monotonic seconds."""

    request_id: str
    arrival: float
    plan: Plan
    top_k: int
    deadline: float = math.inf


def answer_document(facts: Facts, inquiry: Inquiry, result: Result, throughput: float) -> dict[str, Any]:
    """The body of `POST /classify`."""
    return {
        "request_id": inquiry.request_id,
        "model": facts.model,
        "operating_point": operating_point(inquiry.plan),
        "results": image_answers(facts, inquiry, result),
        "latency_ms": _ms(time.monotonic() - inquiry.arrival),
        "throughput_images_per_second": round(throughput, 1),
    }


def operating_point(plan: Plan) -> dict[str, Any]:
    """The thresholds used, where they came from, and what they are expected to give."""
    return {
        "name": plan.name,
        "source": plan.source,
        "thresholds": plan.thresholds.tolist(),
        "expected_accuracy": plan.expected_accuracy,
        "expected_gflops": plan.expected_gflops,
    }


def image_answers(facts: Facts, inquiry: Inquiry, result: Result) -> list[dict[str, Any]]:
    """One entry an image of `result`."""
    best = (-result.probabilities).argsort(axis=1, kind="stable")[:, : inquiry.top_k]
    top = _rounded(result.probabilities[np.arange(len(best))[:, None], best])
    classes = best.tolist()
    stages = _stages(facts.classes, result)
    exits, reasons = result.exit.tolist(), result.reason.tolist()
    latencies = _rounded((result.landed - inquiry.arrival) * 1e3, 3)
    answers = []
    for i, index in enumerate(result.index.tolist()):
        answer: dict[str, Any] = {"index": index}
        if exits[i]:
            last = stages[i][-1]
            answer |= {
                "label": last["label"],
                "class_id": classes[i][0],
                "confidence": last["confidence"],
                "score": last["score"],
                "top_k": [
                    {"label": facts.classes[c], "class_id": c, "probability": p}
                    for c, p in zip(classes[i], top[i], strict=True)
                ],
                "exit": exits[i],
            }
        else:
            answer |= NO_ANSWER
        answers.append(
            answer
            | {
                "exits": len(facts.gflops),
                "reason": REASONS[reasons[i]],
                "gflops": facts.gflops[exits[i] - 1] if exits[i] else 0.0,
                "degraded": inquiry.plan.source == "brownout",
                "stages": stages[i],
                "latency_ms": latencies[i],
            }
        )
    if inquiry.deadline < math.inf:
        for answer, margin in zip(answers, _rounded((inquiry.deadline - result.landed) * 1e3, 3), strict=True):
            answer["deadline_margin_ms"] = margin
    return answers


def _stages(classes: tuple[str, ...], result: Result) -> list[list[dict[str, Any]]]:
    history = result.history
    columns = [
        _rounded(history.score),
        _rounded(history.confidence),
        history.class_id.tolist(),
        _rounded(history.queue_seconds * 1e3, 3),
        _rounded(history.compute_seconds * 1e3, 3),
        history.batch_size.tolist(),
    ]
    return [
        [
            {
                "stage": k + 1,
                "score": row[0][k],
                "confidence": row[1][k],
                "label": classes[row[2][k]],
                "queue_ms": row[3][k],
                "compute_ms": row[4][k],
                "batch_size": row[5][k],
            }
            for k in range(exit)
        ]
        for exit, *row in zip(result.exit.tolist(), *columns, strict=True)
    ]


def _rounded(array: NDArray[Any], digits: int = 8) -> list[Any]:
    """Plain floats without the digits that float32 makes up."""
    rounded: list[Any] = array.astype(np.float64).round(digits).tolist()
    return rounded


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
