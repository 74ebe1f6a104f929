"""An imported cascade behind every way to serve: each option, the protocol, the metrics, as for our own networks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import msmlp
from msmlp.bench.engine import BenchOptions, bench_engine
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.errors import OptionError
from msmlp.model.offline import Outputs, run_every_exit
from msmlp.model.preprocess import load_image
from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.settings import Settings
from tests.fakes import PATIENCE_SECONDS
from tests.imported import LABELS, cut_network, imported, network
from tests.processes import LAYOUTS, msmlp_serve
from tests.servers import encoded


@pytest.fixture(scope="module")
def folders(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {"sizes": (network(digits, 16, 4), network(digits, 32, 24)), "cut": cut_network(digits)}
    return {name: imported(tmp_path_factory.mktemp(name) / name, digits, *models) for name, models in made.items()}


@pytest.fixture(scope="module", params=["sizes", "cut"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def files(digits: Any, cat_photo: bytes) -> list[bytes]:
    return [*(encoded(pixels) for pixels in digits.test[:40]), cat_photo]


@pytest.fixture(scope="module")
def offline(folder: Path, files: list[bytes]) -> Outputs:
    """What the stages say, one image at a time."""
    weights = load_weights(folder)
    settings = BackendSettings("cpu", capacity=8, max_batch=8)
    backend = select_backend(weights, load_calibration(weights), settings).build()
    pixels = np.stack([load_image(file, weights.manifest.views) for file in files])
    return run_every_exit(backend, pixels)


@pytest.fixture(scope="module", params=LAYOUTS)
def client(request: pytest.FixtureRequest, folder: Path) -> Iterator[httpx.Client]:
    with msmlp_serve(folder, *request.param, "--max-batch", "8") as served:
        served.wait_until_ready(int(request.param[1]))
        with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
            yield client


def classify(client: httpx.Client, files: list[bytes], **options: Any) -> dict[str, Any]:
    answer = client.post("/classify", files=[("images", file) for file in files], params=options)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_images_leave_where_their_scores_reach_the_threshold(
    client: httpx.Client, files: list[bytes], offline: Outputs
) -> None:
    threshold = float(np.median(offline.scores[:, 0]))
    results = classify(client, files, thresholds=str(threshold))["results"]
    sure = offline.scores[:, 0] >= threshold
    clear = np.abs(offline.scores[:, 0] - threshold) > 1e-5
    exits = np.array([result["exit"] for result in results])
    assert (exits == np.where(sure, 1, 2))[clear].all()
    assert {1, 2} == set(exits.tolist())
    for row, result in enumerate(results):
        said = offline.probabilities[row, result["exit"] - 1]
        assert result["confidence"] == pytest.approx(said.max(), abs=1e-5)
        assert result["label"] == LABELS[int(said.argmax())]
    costs = [each["gflops"] for each in client.get("/model").json()["exits"]]
    assert [result["gflops"] for result in results] == [costs[exit - 1] for exit in exits]


def test_budgets_accuracies_and_bounds(client: httpx.Client, files: list[bytes]) -> None:
    model = client.get("/model").json()
    points = model["operating_points"]
    budget = (points[0]["mean_gflops"] + points[-1]["mean_gflops"]) / 2
    assert classify(client, files[:1], budget_gflops=budget)["operating_point"]["expected_gflops"] <= budget
    wanted = points[-1]["expected_accuracy"]
    assert classify(client, files[:1], min_accuracy=wanted)["operating_point"]["expected_accuracy"] >= wanted
    for options, exit, reason in (
        ({"max_exit": 1, "thresholds": "1"}, 1, "max_exit"),
        ({"max_gflops": model["exits"][0]["gflops"], "thresholds": "1"}, 1, "max_exit"),
        ({"min_exit": 2, "thresholds": "0"}, 2, "final"),
        ({"deadline_ms": 60_000, "thresholds": "1"}, 2, "final"),
    ):
        (result,) = classify(client, files[:1], **options)["results"]
        assert (result["exit"], result["reason"]) == (exit, reason)
    refused = client.post("/classify", content=files[0], params={"thresholds": "0.5,0.5"})
    assert refused.status_code == 422


def test_a_stream_has_a_line_for_every_exit(client: httpx.Client, files: list[bytes]) -> None:
    parts = [("images", file) for file in files[:5]]
    answer = client.post("/classify", files=parts, params={"stream": "true", "thresholds": "1"})
    lines = [line for line in answer.text.splitlines() if line]
    assert (answer.status_code, len(lines)) == (200, 10)


def test_the_protocol_says_the_real_shapes_and_takes_pixels(
    client: httpx.Client, digits: Any, files: list[bytes]
) -> None:
    model = client.get("/model").json()
    several = (
        len({stage["picture"]["preprocess"]["size"] for stage in model["cascade"]["stages"] if stage["picture"]}) > 1
    )
    metadata = client.get("/v2/models/msmlp").json()
    shapes = {each["name"]: each["shape"] for each in (*metadata["inputs"], *metadata["outputs"])}
    assert shapes["pixels"] == ([-1, -1, -1, 3] if several else [-1, 16, 16, 3])
    assert shapes["probabilities"] == [-1, 10]
    pixels = digits.test[:4]
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    answer = client.post("/v2/models/msmlp/infer", json={"inputs": [tensor], "parameters": {"thresholds": "1"}})
    assert answer.status_code == 200, answer.text
    outputs = {each["name"]: each["data"] for each in answer.json()["outputs"]}
    expected = classify(client, files[:4], thresholds="1")["results"]
    assert outputs["label"] == [result["label"] for result in expected]
    assert outputs["confidence"] == pytest.approx([result["confidence"] for result in expected], abs=1e-6)


def test_the_metrics_count_it(client: httpx.Client, files: list[bytes]) -> None:
    classify(client, files[:3], thresholds="0")
    text = client.get("/metrics").text
    assert 'backend="onnx"' in text
    assert 'msmlp_images_total{exit="1",reason="confident"}' in text
    assert 'msmlp_exit_gflops{exit="2"}' in text


def test_load_answers_in_this_process(folder: Path, files: list[bytes], offline: Outputs) -> None:
    with msmlp.load(folder, device="cpu", max_batch=8) as model:
        answer = model.classify([files[0], files[-1]], thresholds=[1.0])
    assert [result["label"] for result in answer["results"]] == [
        LABELS[row] for row in offline.predictions[[0, -1], -1]
    ]


def test_torch_is_refused_by_name(folder: Path) -> None:
    weights = load_weights(folder)
    with pytest.raises(OptionError, match="torch cannot run an imported cascade; use onnx or auto"):
        select_backend(weights, load_calibration(weights), BackendSettings("cpu"), "torch")


def test_bench_engine_measures_it(folder: Path) -> None:
    settings = Settings(weights=folder, device="cpu")
    result = bench_engine(BenchOptions(settings, images=64, rounds=1, caps=(8,), load_seconds=0))
    assert result["plain_images_per_second"] > 0
    assert result["engine_images_per_second"] > 0
    assert set(result["baselines"]) == {"full", "masked", "shrinking"}
