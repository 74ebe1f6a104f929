"""`POST /classify` of a real server on real weights: bodies, options, answers."""

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.offline import run_every_exit
from msmlp.model.preprocess import load_image
from msmlp.model.weights import load_calibration, load_weights
from tests.servers import encoded

JPEG = {"Content-Type": "image/jpeg"}


def classify(client: httpx.Client, *images: bytes, **options: Any) -> dict[str, Any]:
    """Images in one form, options in the query → the answer."""
    files = [("images", (f"{i}.bin", image)) for i, image in enumerate(images)]
    answer = client.post("/classify", files=files, params=options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def only(document: dict[str, Any]) -> dict[str, Any]:
    (result,) = document["results"]
    return result


@pytest.fixture(scope="module")
def alone(client: httpx.Client, cat_photo: bytes) -> dict[str, Any]:
    """The photograph's answer, with thresholds that no image passes before the last exit."""
    return classify(client, cat_photo, thresholds="1,1")


def test_the_answers_fields_are_the_contracts(alone: dict[str, Any]) -> None:
    assert set(alone) == {
        "request_id",
        "model",
        "operating_point",
        "results",
        "latency_ms",
        "throughput_images_per_second",
    }
    assert set(alone["model"]) == {"name", "version"}
    assert set(alone["operating_point"]) == {
        "name",
        "source",
        "thresholds",
        "expected_accuracy",
        "standard_error",
        "expected_gflops",
    }
    result = only(alone)
    assert set(result) == {
        "index",
        "label",
        "class_id",
        "confidence",
        "score",
        "top_k",
        "exit",
        "exits",
        "reason",
        "gflops",
        "degraded",
        "stages",
        "latency_ms",
    }
    assert all(set(entry) == {"label", "class_id", "probability"} for entry in result["top_k"])
    assert all(
        set(stage) == {"stage", "score", "confidence", "label", "queue_ms", "compute_ms", "batch_size"}
        for stage in result["stages"]
    )


def test_an_answer_agrees_with_itself(alone: dict[str, Any], client: httpx.Client) -> None:
    result, model = only(alone), client.get("/model").json()
    assert alone["model"] == {"name": model["name"], "version": model["version"]}
    assert (result["exit"], result["exits"], result["reason"]) == (3, 3, "final")
    assert result["gflops"] == model["exits"][2]["gflops"]
    assert [stage["stage"] for stage in result["stages"]] == [1, 2, 3]
    last = result["stages"][-1]
    assert (result["label"], result["score"], result["confidence"]) == (
        last["label"],
        last["score"],
        last["confidence"],
    )
    assert result["label"] == model["classes"][result["class_id"]] == result["top_k"][0]["label"]
    assert result["confidence"] == result["score"] == pytest.approx(result["top_k"][0]["probability"])
    assert len(result["top_k"]) == 5
    assert 0 < result["latency_ms"] <= alone["latency_ms"]
    assert sum(s["queue_ms"] + s["compute_ms"] for s in result["stages"]) <= alone["latency_ms"]
    assert alone["throughput_images_per_second"] > 0


def test_a_photograph_is_answered_as_the_model_in_process_does(
    alone: dict[str, Any], cat_photo: bytes, tiny_weights: Path
) -> None:
    weights = load_weights(tiny_weights)
    exits = Exits(load_calibration(weights).file.temperatures)
    backend = StagedBackend(weights, BackendSettings("cpu", capacity=1, exits=exits))
    outputs = run_every_exit(backend, load_image(cat_photo, 32)[None])
    result = only(alone)
    assert [stage["score"] for stage in result["stages"]] == pytest.approx(outputs.scores[0].tolist(), abs=1e-5)
    assert result["class_id"] == outputs.predictions[0, 2]


def body_forms(image: bytes) -> dict[str, dict[str, Any]]:
    text = base64.b64encode(image).decode()
    return {
        "raw": {"content": image, "headers": JPEG},
        "raw under another type": {"content": image, "headers": {"Content-Type": "image/png"}},
        "raw octets": {"content": image, "headers": {"Content-Type": "application/octet-stream"}},
        "form": {"files": {"images": ("cat.jpg", image, "image/jpeg")}},
        "form, the other name": {"files": {"image": ("cat.jpg", image)}},
        "json": {"json": {"images": [text]}},
        "chunked": {"content": iter([image[:1000], image[1000:]]), "headers": JPEG},
    }


@pytest.mark.parametrize("form", body_forms(b""))
def test_every_body_form_gives_the_same_answer(
    client: httpx.Client, cat_photo: bytes, alone: dict[str, Any], form: str
) -> None:
    answer = client.post("/classify", params={"thresholds": "1,1"}, **body_forms(cat_photo)[form])
    assert answer.status_code == 200, answer.text
    got, expected = only(answer.json()), only(alone)
    for field in ("label", "class_id", "exit", "reason", "score", "top_k"):
        assert got[field] == expected[field]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF"])
def test_every_format_is_read_whatever_its_name(client: httpx.Client, digits: Any, kind: str) -> None:
    content = encoded(digits.test[0].repeat(4, axis=0).repeat(4, axis=1), kind)
    answer = client.post("/classify", content=content, headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 200, answer.text
    assert only(answer.json())["exit"] >= 1


@pytest.mark.parametrize("way", ["query", "form", "json"])
def test_every_option_can_be_given_in_every_way(client: httpx.Client, cat_photo: bytes, way: str) -> None:
    def send(**options: Any) -> dict[str, Any]:
        if way == "query":
            answer = client.post("/classify", content=cat_photo, headers=JPEG, params=options)
        elif way == "form":
            answer = client.post("/classify", files={"images": cat_photo}, data={k: str(v) for k, v in options.items()})
        else:
            images = [base64.b64encode(cat_photo).decode()]
            answer = client.post("/classify", json={"images": images, **options})
        assert answer.status_code == 200, answer.text
        return answer.json()

    thresholds = [0.25, 1.0] if way == "json" else "0.25,1"
    assert send(thresholds=thresholds)["operating_point"]["thresholds"] == [0.25, 1.0]
    assert send(policy="fast")["operating_point"]["name"] == "fast"
    assert send(budget_gflops=99)["operating_point"]["source"] == "request"
    assert send(min_accuracy=0.01)["operating_point"]["source"] == "request"
    assert only(send(max_gflops=0.0002))["exit"] == 1
    assert only(send(min_exit=3))["exit"] == 3
    assert only(send(max_exit=1))["exit"] == 1
    assert len(only(send(top_k=2))["top_k"]) == 2


def test_no_option_is_the_servers_default(client: httpx.Client, cat_photo: bytes) -> None:
    point = classify(client, cat_photo)["operating_point"]
    model = client.get("/model").json()
    default = next(p for p in model["operating_points"] if p["name"] == model["default_policy"])
    assert (point["name"], point["source"]) == ("balanced", "default")
    assert point["thresholds"] == default["thresholds"]
    assert point["expected_accuracy"] == pytest.approx(default["expected_accuracy"])
    assert point["expected_gflops"] == pytest.approx(default["mean_gflops"])


@pytest.mark.parametrize(
    ("options", "exit", "reason"),
    [
        ({"thresholds": "0,0"}, 1, "confident"),
        ({"thresholds": "1,1"}, 3, "final"),
        ({"thresholds": "0,0", "min_exit": 2}, 2, "confident"),
        ({"thresholds": "0,0", "min_exit": 3}, 3, "final"),
        ({"thresholds": "1,1", "max_exit": 1}, 1, "max_exit"),
        ({"thresholds": "1,1", "max_exit": 2}, 2, "max_exit"),
        ({"thresholds": "1,1", "max_exit": 3}, 3, "final"),
        ({"thresholds": "1,0", "max_exit": 2}, 2, "confident"),
        ({"min_exit": 2, "max_exit": 2, "thresholds": "0,1"}, 2, "max_exit"),
        ({"thresholds": "1,1", "max_gflops": 0.001}, 2, "max_exit"),
    ],
)
def test_exit_bounds(
    client: httpx.Client, digit_files: list[bytes], options: dict[str, Any], exit: int, reason: str
) -> None:
    results = classify(client, *digit_files[:5], **options)["results"]
    assert {(r["exit"], r["reason"], len(r["stages"])) for r in results} == {(exit, reason, exit)}


def test_what_is_decided_follows_from_what_is_answered(
    client: httpx.Client, digit_files: list[bytes], parting: list[float]
) -> None:
    """Anyone can check the exit rule by the answer."""
    document = classify(client, *digit_files[:64], thresholds=str(parting))
    assert {r["exit"] for r in document["results"]} == {1, 2, 3}
    for index, result in enumerate(document["results"]):
        scores = [stage["score"] for stage in result["stages"]]
        assert result["index"] == index
        assert all(score < limit for score, limit in zip(scores[:-1], parting, strict=False))
        if result["exit"] < 3:
            assert scores[-1] >= parting[result["exit"] - 1]


def test_budgets_buy_ever_more(client: httpx.Client, cat_photo: bytes) -> None:
    points = client.get("/model").json()["operating_points"]
    costs = sorted({p["mean_gflops"] for p in points})
    budgets = [c * f for c in costs for f in (1.0, 1.01)]
    bought = [classify(client, cat_photo, budget_gflops=b)["operating_point"] for b in budgets]
    for budget, point in zip(budgets, bought, strict=True):
        assert point["expected_gflops"] <= budget
        within = [p["expected_accuracy"] for p in points if p["mean_gflops"] <= budget]
        assert point["expected_accuracy"] == pytest.approx(max(within))
    accuracies = [point["expected_accuracy"] for point in bought]
    assert accuracies == sorted(accuracies)


def test_a_budget_that_buys_nothing_names_the_least(client: httpx.Client, cat_photo: bytes) -> None:
    least = min(p["mean_gflops"] for p in client.get("/model").json()["operating_points"])
    answer = client.post("/classify", content=cat_photo, headers=JPEG, params={"budget_gflops": least / 2})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_option")
    assert f"budget_gflops: no operating point is that cheap; expected {least:.6f} or more" in answer.json()["detail"]


def test_every_operating_point_is_a_policy(client: httpx.Client, cat_photo: bytes) -> None:
    points = client.get("/model").json()["operating_points"]
    assert {"fast", "balanced", "accurate"} <= {p["name"] for p in points}
    for expected in points:
        point = classify(client, cat_photo, policy=expected["name"])["operating_point"]
        assert (point["name"], point["source"], point["thresholds"]) == (
            expected["name"],
            "request",
            expected["thresholds"],
        )


def test_top_k(client: httpx.Client, cat_photo: bytes) -> None:
    for wanted, given in [(1, 1), (3, 3), (10, 10), (11, 10), (1000, 10)]:
        entries = only(classify(client, cat_photo, top_k=wanted))["top_k"]
        probabilities = [entry["probability"] for entry in entries]
        assert len({entry["class_id"] for entry in entries}) == len(entries) == given
        assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_headers(client: httpx.Client, cat_photo: bytes) -> None:
    answer = client.post("/classify", content=cat_photo, headers=JPEG)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"]
    number = r"\d+(\.\d+)?"
    assert re.fullmatch(
        rf"decode;dur={number}, queue;dur={number}, compute;dur={number}", answer.headers["Server-Timing"]
    )


def test_latency_counts_the_time_a_body_takes(client: httpx.Client, cat_photo: bytes) -> None:
    def slowly() -> Iterator[bytes]:
        yield cat_photo[:100]
        time.sleep(0.5)  # the server may see the beginning later than it was sent
        yield cat_photo[100:]

    document = client.post("/classify", content=slowly(), headers=JPEG).json()
    assert document["latency_ms"] >= only(document)["latency_ms"] >= 300
