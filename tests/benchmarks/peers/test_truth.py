import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.measure import look
from benchmarks.peers.prepare import half_threshold, right_answers
from benchmarks.peers.programs import Graphs, decode
from msmlp.bench.generator import Seen
from msmlp.bench.images import thumbnails
from msmlp.model.backends.onnx.cpu import OnnxBackend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import load_weights
from msmlp.model.weights.graphs import graph_name

RIGHT = [
    {"class_id": 3, "confidence": 0.5, "exit": 1},
    {"class_id": 3, "confidence": 0.6, "exit": 2},
]


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2], [0.2, 0.30000001, 0.3, 0.1]])
def test_half_of_the_scores_reach_the_threshold_and_none_is_on_it(scores: list[float]) -> None:
    threshold = half_threshold(np.array(scores, dtype=np.float32))
    assert sum(np.float32(score) >= threshold for score in scores) == len(scores) / 2
    assert threshold not in scores


@pytest.mark.system  # it takes ten seconds or more
def test_a_peer_s_cascade_takes_the_exits_of_the_product_s_backend(tiny_weights: Path) -> None:
    cascade = load_weights(tiny_weights).manifest.cascade
    backend = OnnxBackend(
        cascade.shape,
        [(tiny_weights / graph_name(k)).read_bytes() for k in range(3)],
        BackendSettings("cpu", capacity=1024, max_batch=16),
    )
    files = thumbnails(cascade.image_size)[:16]
    pixels = np.stack([decode(file, cascade.image_size) for file in files])
    every = run_every_exit(backend, pixels)
    thresholds = [half_threshold(every.scores[:, k]) for k in range(2)]
    stays = np.column_stack([every.scores[:, :2] >= thresholds, np.ones(16, dtype=bool)])
    exits = stays.argmax(axis=1)
    assert len(set(exits.tolist())) == 3
    probabilities = every.probabilities[np.arange(16), exits]
    graphs = Graphs(tiny_weights, thresholds, threads=1)
    found = graphs.classify(pixels)
    assert [answer["exit"] for answer in found] == (exits + 1).tolist()
    assert [answer["class_id"] for answer in found] == probabilities.argmax(axis=1).tolist()
    assert [answer["confidence"] for answer in found] == pytest.approx(probabilities.max(axis=1).tolist(), abs=1e-5)
    alone = [graphs.classify_one(each[None]) for each in pixels]
    for one, answer in zip(alone, found, strict=True):
        assert one == {**answer, "confidence": pytest.approx(answer["confidence"], abs=1e-5)}
    assert [answer["exit"] for answer in right_answers(tiny_weights, thresholds, files)] == (exits + 1).tolist()


def test_the_answer_of_another_image_is_wrong_and_so_is_another_class_or_exit() -> None:
    other_class, other_exit = {**RIGHT[0], "class_id": 4}, {**RIGHT[1], "exit": 1}
    batches = [{"batch_size": 8}, {"batch_size": 3}]
    ours = {"results": [{**RIGHT[1], "confidence": 0.6000001, "degraded": True, "stages": batches}]}
    answers = [RIGHT[0], RIGHT[0], other_class, other_exit, ours]
    seen = Seen(answers=[json.dumps(answer).encode() for answer in answers], asked=[0, 1, 0, 1, 1])
    looks = look(seen, RIGHT)
    assert (looks.wrong, looks.degraded) == (3, 1)
    assert looks.exits == {"1": 4, "2": 1}
    assert looks.batches == {"1:1": 4, "1:8": 1, "2:3": 1}, "who does not say ran every image alone"
    assert not look(seen, RIGHT, says_batches=False).batches


def test_an_image_that_expired_is_wrong() -> None:
    expired = {"results": [{"class_id": None, "confidence": None, "exit": None, "stages": []}]}
    assert look(Seen(answers=[json.dumps(expired).encode()], asked=[0]), RIGHT).wrong == 1


def test_the_threshold_is_in_the_widest_gap_near_the_median() -> None:
    scores = np.arange(200, dtype=np.float32)
    scores[102:] += 5
    assert half_threshold(scores) == 104
