"""Triton's metrics by Triton's names, against traffic that is known."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from msmlp.service.service import Service
from tests.fakes import FakeBackend, Pixels, picture
from tests.servers import encoded, fake_backend, fake_service, knock, serving, wait_until

Running = tuple[httpx.Client, Service, FakeBackend]

NAMES = {
    "request_success",
    "request_failure",
    "count",
    "exec_count",
    "request_duration_us",
    "queue_duration_us",
    "compute_input_duration_us",
    "compute_infer_duration_us",
    "compute_output_duration_us",
    "pending_request_count",
}


@pytest.fixture
def running(tiny_weights: Path) -> Iterator[Running]:
    backend = fake_backend(capacity=4)
    service = fake_service(tiny_weights, lambda: backend, capacity=4, triton_metrics=True)
    with serving(service) as client:
        yield client, service, backend


def scrape(client: httpx.Client) -> dict[str, float]:
    """By name, and for failures by name and reason; every series is the served model's."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("nv_"):
                labels = dict(sample.labels)
                assert labels.pop("model")
                assert labels.pop("version")
                reason = f"/{labels.pop('reason')}" if labels else ""
                assert not labels
                found[sample.name.removeprefix("nv_inference_") + reason] = sample.value
    return found


def classify(client: httpx.Client, *pictures: Pixels, **options: object) -> httpx.Response:
    params = {"thresholds": "0.5,0.5", **options}
    return client.post("/classify", files=[("images", encoded(each)) for each in pictures], params=params)


def test_all_are_there_from_the_first_scrape(running: Running) -> None:
    client, _, _ = running
    now = scrape(client)
    assert {name.partition("/")[0] for name in now} == NAMES
    assert {name.partition("/")[2] for name in now} == {"", "REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert set(now.values()) == {0.0}


def test_answers_are_counted_by_requests_images_and_batches(running: Running) -> None:
    client, _, backend = running
    backend.batches.clear()  # those of the warm-up
    assert classify(client, picture(0.9, size=32), picture(0.1, 0.9, size=32)).status_code == 200
    assert classify(client, picture(0.9, size=32), stream="true").status_code == 200
    client.get("/classify")
    client.get("/readyz")
    now = scrape(client)
    assert (now["request_success"], now["count"]) == (2, 3)
    assert now["exec_count"] == sum(stage == 0 for stage, _ in backend.batches)
    parts = now["queue_duration_us"] + now["compute_input_duration_us"] + now["compute_infer_duration_us"]
    assert 0 < now["compute_infer_duration_us"] < parts <= now["request_duration_us"]
    assert not any(value for name, value in now.items() if name.startswith("request_failure"))


def test_failures_are_counted_by_reason(running: Running) -> None:
    client, service, backend = running
    assert client.post("/classify", content=b"x", headers={"Content-Type": "image/png"}).status_code == 422
    assert classify(client, picture(0.9, size=32), deadline_ms="0.0001").status_code == 504
    files = [("images", encoded(picture(0.9, size=32)))] * 3
    with backend.gate.held():
        with knock(client, files=files):
            backend.gate.wait_until_reached()
            assert scrape(client)["pending_request_count"] == 1
            assert classify(client, *[picture(0.9, size=32)] * 3).status_code == 429
        wait_until(lambda: scrape(client)["request_failure/CANCELED"] == 1)
    wait_until(lambda: service.engine.inflight == 0)

    def fail(stage: int, pixels: Pixels) -> None:
        raise RuntimeError("a broken device")

    backend.fail = fail
    assert classify(client, picture(0.9, size=32)).status_code == 503
    now = scrape(client)
    failures = {name.partition("/")[2]: value for name, value in now.items() if name.startswith("request_failure")}
    assert failures == {"OTHER": 1, "REJECTED": 2, "CANCELED": 1, "BACKEND": 1}
    assert now["request_success"] == now["pending_request_count"] == 0


def test_they_are_not_there_unless_asked_for(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        assert not scrape(client)
