"""From an engine's result to the JSON answer."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.result import Result
from msmlp.service.operating_points import Plan

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

DIGITS = 8
"""Of what float32 has made; it would make up more."""
# History's columns: score and confidence with that many digits, seconds as milliseconds with three.
_FINE, _COARSE = np.array([1e8, 1e8, 1e6, 1e6]), np.array([1e8, 1e8, 1e3, 1e3])


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
    top = result.probabilities[np.arange(len(best))[:, None], best].astype(np.float64).round(DIGITS)
    history = result.history
    rows = zip(
        result.index.tolist(),
        result.exit.tolist(),
        result.reason.tolist(),
        best.tolist(),
        top.tolist(),
        ((history.measured * _FINE).round() / _COARSE).tolist(),
        history.counted.tolist(),
        result.landed.tolist(),
        strict=True,
    )
    return [_image_answer(facts, inquiry, *row) for row in rows]


def _image_answer(
    facts: Facts,
    inquiry: Inquiry,
    index: int,
    exit: int,
    reason: int,
    best: list[int],
    top: list[float],
    measured: list[list[float]],
    counted: list[list[int]],
    landed: float,
) -> dict[str, Any]:
    stages = _stages(facts.classes, measured[:exit], counted[:exit])
    answer: dict[str, Any] = {"index": index}
    if exit:
        last = stages[-1]
        answer |= {
            "label": last["label"],
            "class_id": best[0],
            "confidence": last["confidence"],
            "score": last["score"],
            "top_k": [
                {"label": facts.classes[c], "class_id": c, "probability": p} for c, p in zip(best, top, strict=True)
            ],
            "exit": exit,
        }
    else:
        answer |= NO_ANSWER
    answer |= {
        "exits": len(facts.gflops),
        "reason": REASONS[reason],
        "gflops": facts.gflops[exit - 1] if exit else 0.0,
        "degraded": inquiry.plan.source == "brownout",
        "stages": stages,
        "latency_ms": _ms(landed - inquiry.arrival),
    }
    if inquiry.deadline < math.inf:
        answer["deadline_margin_ms"] = _ms(inquiry.deadline - landed)
    return answer


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
