"""From an engine's result to the contract's answer."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.exits import Reason
from service.engine.facade import Result
from service.engine.policy import Plan

REASONS = {int(r): r.name.lower() for r in Reason}


def answer_document(
    *,
    request_id: str,
    model: dict[str, str],
    classes: tuple[str, ...],
    gflops: list[float],
    plan: Plan,
    result: Result,
    top_k: int,
    arrival: float,
    throughput: float,
) -> dict[str, Any]:
    """The body of `POST /classify`; `arrival` is on the monotonic clock, `gflops` cumulative per exit."""
    return {
        "request_id": request_id,
        "model": model,
        "operating_point": {
            "name": plan.name,
            "source": plan.source,
            "thresholds": plan.thresholds.tolist(),
            "expected_accuracy": plan.expected_accuracy,
            "expected_gflops": plan.expected_gflops,
        },
        "results": _results(classes, gflops, result, top_k, arrival),
        "latency_ms": _ms(time.monotonic() - arrival),
        "throughput_images_per_second": round(throughput, 1),
    }


def _results(
    classes: tuple[str, ...], gflops: list[float], result: Result, top_k: int, arrival: float
) -> list[dict[str, Any]]:
    best = np.argsort(-result.probabilities, axis=1, kind="stable")[:, :top_k]
    top = _rounded(np.take_along_axis(result.probabilities, best, axis=1))
    stages = _stages(classes, result)
    exits, reasons = result.exit.tolist(), result.reason.tolist()
    latencies = _rounded((result.landed - arrival) * 1e3, 3)
    answers = []
    for i, (ranked, probabilities) in enumerate(zip(best.tolist(), top, strict=True)):
        last = stages[i][-1]
        answers.append(
            {
                "index": i,
                "label": last["label"],
                "class_id": ranked[0],
                "confidence": last["confidence"],
                "score": last["score"],
                "top_k": [
                    {"label": classes[c], "class_id": c, "probability": p}
                    for c, p in zip(ranked, probabilities, strict=True)
                ],
                "exit": exits[i],
                "exits": len(gflops),
                "reason": REASONS[reasons[i]],
                "gflops": gflops[exits[i] - 1],
                "degraded": False,
                "stages": stages[i],
                "latency_ms": latencies[i],
            }
        )
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


def server_timing(decode_seconds: float, result: Result) -> str:
    """The Server-Timing header: decoding, and the longest wait and compute of any image."""
    done = np.arange(result.history.score.shape[1]) < result.exit[:, None]
    queued = float((result.history.queue_seconds * done).sum(axis=1).max())
    compute = float((result.history.compute_seconds * done).sum(axis=1).max())
    return f"decode;dur={_ms(decode_seconds)}, queue;dur={_ms(queued)}, compute;dur={_ms(compute)}"


def _rounded(array: NDArray[Any], digits: int = 8) -> list[Any]:
    """Plain floats without the digits that float32 makes up."""
    rounded: list[Any] = np.round(array.astype(np.float64), digits).tolist()
    return rounded


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
