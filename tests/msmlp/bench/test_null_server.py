"""The backend that computes nothing, under the real engine."""

import pickle
from pathlib import Path

import numpy as np

from msmlp.bench.null_server import build_null, select_null
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.servers import encoded, serving


def test_images_have_the_recorded_scores_in_the_order_they_come(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    backend = select_null(weights, load_calibration(weights), BackendSettings(capacity=8, max_batch=4), "auto").build()
    pixels = np.zeros((3, *backend.image_shape), dtype=np.uint8)
    first, second = backend.admit(pixels), backend.admit(pixels)
    of_both = [
        np.concatenate([backend.collect(backend.launch(stage, slots)).score for slots in (first, second)])
        for stage in range(backend.stages)
    ]
    backend.release(first)
    again = backend.collect(backend.launch(0, second))
    assert np.array_equal(again.score, of_both[0][3:])
    assert np.allclose(again.probabilities.sum(axis=1), 1)
    assert np.array_equal(again.probabilities.max(axis=1) >= again.score, [True] * 3)
    assert len({tuple(scores) for scores in of_both}) == len(of_both), "stages differ"


def test_another_process_can_be_given_how_it_is_built() -> None:
    found = pickle.loads(pickle.dumps(build_null))
    assert (found.func, found.keywords) == (build_null.func, {"select": select_null})


def test_a_server_answers_with_it(tiny_weights: Path) -> None:
    service = build_service(Settings(weights=tiny_weights, engine="thread"), select=select_null)
    with serving(service) as client:
        files = [("images", encoded(np.zeros((32, 32, 3), dtype=np.uint8)))] * 20
        answer = client.post("/classify", files=files)
    assert answer.status_code == 200
    assert {result["reason"] for result in answer.json()["results"]} <= {"confident", "final"}
