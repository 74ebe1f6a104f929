"""One answer whatever the company: waiting together, answered together, and each as if it had been alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.evaluate import evaluate
from msmlp.model.exits.rule import exit_of
from msmlp.model.offline import Outputs
from msmlp.model.weights import load_calibration, load_weights
from tests.fakes import FakeBackend, Gated, picture
from tests.servers import Submissions, encoded, fake_backend, fake_service, serving

EPSILON = 1e-5
"""How far an image's scores may differ between batches of another size (fp32)."""

CLIENTS = 64


def single(client: httpx.Client, image: bytes, **options: Any) -> dict[str, Any]:
    answer = client.post("/classify", content=image, headers={"Content-Type": "image/png"}, params=options)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    return result


def test_with_the_device_held_64_waiting_requests_leave_as_one_batch(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    submissions = Submissions(service.engine)
    images = [encoded(picture(1.0, label=i % 10, size=32)) for i in range(CLIENTS)]
    with serving(service) as client, ThreadPoolExecutor(CLIENTS + 1) as pool:
        backend.batches.clear()
        with backend.gate.held():
            first = pool.submit(single, client, images[0])
            submissions.wait_for(1)
            backend.gate.wait_until_reached()
            waiting = [pool.submit(single, client, image) for image in images]
            submissions.wait_for(CLIENTS)
        answers = [future.result() for future in waiting]
        assert first.result()["stages"][0]["batch_size"] == 1
    assert backend.batches == [(0, 1), (0, CLIENTS)]
    assert {answer["stages"][0]["batch_size"] for answer in answers} == {CLIENTS}
    assert [answer["class_id"] for answer in answers] == [i % 10 for i in range(CLIENTS)]


def test_survivors_of_different_clients_share_the_second_stages_batch(tiny_weights: Path) -> None:
    backend: FakeBackend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    submissions = Submissions(service.engine)
    with serving(service) as client, ThreadPoolExecutor(9) as pool:
        with backend.gate.held():
            pool.submit(single, client, encoded(picture(1.0, size=32)))
            submissions.wait_for(1)
            backend.gate.wait_until_reached()
            hard = [encoded(picture(0.2 if i % 2 else 1.0, 1.0, size=32)) for i in range(8)]
            waiting = [pool.submit(single, client, image, thresholds="0.5,0.5") for image in hard]
            submissions.wait_for(8)
        answers = [future.result() for future in waiting]
    assert [[stage["batch_size"] for stage in answer["stages"]] for answer in answers] == [[8], [8, 4]] * 4


@pytest.fixture(scope="module")
def gated(tiny_weights: Path) -> Iterator[tuple[httpx.Client, Gated, Submissions]]:
    """A server on the real weights whose device can be held."""
    weights = load_weights(tiny_weights)
    temperatures = load_calibration(weights).file.temperatures
    stages = StagedBackend(weights, BackendSettings("cpu", capacity=256, exits=Exits(temperatures)))
    stages.buckets = (1, 64)  # or the engine would choose by times that differ from run to run
    backend = Gated(stages)
    service = fake_service(tiny_weights, lambda: backend, capacity=256)  # type: ignore[arg-type,return-value]
    submissions = Submissions(service.engine)
    with serving(service) as client:
        yield client, backend, submissions


def near_a_threshold(result: dict[str, Any], thresholds: list[float]) -> bool:
    scores = [stage["score"] for stage in result["stages"]]
    return any(abs(score - limit) <= EPSILON for score, limit in zip(scores, thresholds, strict=False))


def test_64_clients_at_once_get_the_answers_they_get_alone(
    gated: tuple[httpx.Client, Gated, Submissions], digit_files: list[bytes], parting: list[float]
) -> None:
    client, backend, submissions = gated
    images, options = digit_files[:CLIENTS], {"thresholds": str(parting)}
    alone = [single(client, image, **options) for image in images]
    submissions.wait_for(CLIENTS)
    assert {stage["batch_size"] for answer in alone for stage in answer["stages"]} == {1}
    assert {answer["exit"] for answer in alone} == {1, 2, 3}, "the images do not tell exits apart"
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        with backend.gate.held():
            pool.submit(single, client, images[0], **options)
            submissions.wait_for(1)
            backend.gate.wait_until_reached()
            waiting = [pool.submit(single, client, image, **options) for image in images]
            submissions.wait_for(CLIENTS)
        together = [future.result() for future in waiting]
    assert {answer["stages"][0]["batch_size"] for answer in together} >= {CLIENTS}

    band = sum(near_a_threshold(answer, parting) for answer in alone)
    print(f"{band} of {CLIENTS} images have a score within {EPSILON} of its threshold")  # noqa: T201
    for before, after in zip(alone, together, strict=True):
        for one, two in zip(before["stages"], after["stages"], strict=False):
            assert abs(one["score"] - two["score"]) <= EPSILON
        if not near_a_threshold(before, parting):
            assert (before["label"], before["exit"]) == (after["label"], after["exit"])


def over_http(client: httpx.Client, files: list[bytes], **options: Any) -> list[dict[str, Any]]:
    results = []
    for start in range(0, len(files), 50):
        forms = [("images", image) for image in files[start : start + 50]]
        answer = client.post("/classify", files=forms, params=options)
        assert answer.status_code == 200, answer.text
        results += answer.json()["results"]
    return results


def test_http_answers_are_the_models_in_process(
    client: httpx.Client, digit_files: list[bytes], in_process: Outputs, parting: list[float]
) -> None:
    results = over_http(client, digit_files, thresholds=str(parting))
    assert {result["exit"] for result in results} == {1, 2, 3}
    exits = exit_of(in_process.scores, np.array(parting))
    predictions = in_process.predictions[np.arange(len(exits)), exits - 1]
    near = (np.abs(in_process.scores[:, :2] - parting) <= EPSILON).any(axis=1)
    print(f"{near.sum()} of {len(near)} images have a score within {EPSILON} of its threshold")  # noqa: T201
    assert len(results) == len(exits)
    for result, exit, predicted, excused in zip(results, exits, predictions, near, strict=True):
        if not excused:
            assert (result["exit"], result["class_id"]) == (exit, predicted)


def test_accuracy_and_exit_shares_over_http_are_those_of_evaluate(
    client: httpx.Client,
    digit_files: list[bytes],
    digits: Any,
    tiny_weights: Path,
    digits_folder: Path,
    in_process: Outputs,
) -> None:
    document = evaluate(tiny_weights, digits_folder, "test", "cpu")
    assert document["images"] == len(digit_files)
    for point in document["operating_points"]:
        results = over_http(client, digit_files, policy=point["name"])
        near = (np.abs(in_process.scores[:, :2] - point["thresholds"]) <= EPSILON).any(axis=1).sum()
        print(f"{point['name']}: {near} images have a score within {EPSILON} of its threshold")  # noqa: T201
        slack = near / len(results) + 1e-9
        right = np.mean([r["class_id"] == label for r, label in zip(results, digits.test_labels, strict=True)])
        assert abs(right - point["accuracy"]) <= slack
        for k, share in enumerate(point["exit_share"], 1):
            assert abs(np.mean([r["exit"] == k for r in results]) - share) <= slack
