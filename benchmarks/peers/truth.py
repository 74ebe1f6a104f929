"""What is right to answer: the graphs' own words, and the threshold at which half of the images leave at stage 1."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.graphs import Answer, Graphs, decode
from msmlp.bench.generator import Seen

TOLERANCE = 1e-6
"""How far a confidence may be off: batches of another size round in another way. Confidences of two images differ by
more, so an answer that was meant for somebody else is seen."""


def half_threshold(scores: NDArray[np.float32]) -> float:
    """In the middle between the two scores at the median: half leave, and none for want of rounding."""
    ordered = np.sort(scores.astype(float))
    half = len(ordered) // 2
    return float(ordered[half - 1] + ordered[half]) / 2


def first_scores(folder: Path, files: list[bytes]) -> NDArray[np.float32]:
    """Of stage 1, whose exit policy is the largest probability, so that confidence and score are one."""
    graphs = Graphs(folder, [0.0], threads=1)
    pixels = np.stack([decode(file, graphs.size) for file in files])
    return np.array([answer["confidence"] for answer in graphs.classify(pixels)], dtype=np.float32)


def right_answers(folder: Path, thresholds: list[float], files: list[bytes]) -> list[Answer]:
    """One for each file, run alone."""
    graphs = Graphs(folder, thresholds, threads=1)
    return [graphs.classify(decode(file, graphs.size)[None])[0] for file in files]


def look(seen: Seen, right: list[Answer]) -> tuple[int, Counter[str]]:
    """How many of the answers that were kept are wrong, and at which exit the images left."""
    wrong, exits = 0, Counter[str]()
    for request, body in zip(seen.asked, seen.answers, strict=True):
        document = json.loads(body)
        answer = document["results"][0] if "results" in document else document
        exits[str(answer["exit"])] += 1
        wrong += not _same(answer, right[request])
    return wrong, exits


def _same(answer: Answer, right: Answer) -> bool:
    near = bool(abs(answer["confidence"] - right["confidence"]) <= TOLERANCE)
    return near and all(answer[name] == right[name] for name in ("class_id", "exit"))
