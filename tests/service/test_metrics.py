"""Metrics against traffic whose every number is known: a fake backend answers what the pictures say."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import SCORES
from service.options import RequestOptions
from service.state import Service
from tests.fakes import FakeBackend, picture
from tests.servers import encoded, fake_backend, fake_service, serving

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def running(tiny_weights: Path) -> Iterator[tuple[httpx.Client, Service, FakeBackend]]:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    with serving(service) as client:
        yield client, service, backend


def scrape(client: httpx.Client) -> Samples:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def grown(before: Samples, after: Samples) -> Samples:
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}


def send(client: httpx.Client, *pictures: tuple[float, ...], **options: object) -> httpx.Response:
    files = [("images", encoded(picture(*scores, size=32))) for scores in pictures]
    return client.post("/classify", files=files, params={"thresholds": "0.5,0.5", **options})


def key(metric: str, **labels: object) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"msmlp_{metric}", tuple(sorted((label, str(value)) for label, value in labels.items()))


def test_counters_are_the_traffic(running: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, service, backend = running
    backend.batches.clear()
    before = scrape(client)
    assert send(client, (1.0,), (1.0,), (0.2, 0.8)).status_code == 200
    assert send(client, (0.2, 0.2, 0.4)).status_code == 200
    assert send(client, (0.2, 0.2, 0.4), max_exit=1).status_code == 200
    assert client.post("/classify", content=b"x", headers={"Content-Type": "image/png"}).status_code == 422
    assert client.get("/nowhere").status_code == 404
    change = grown(before, scrape(client))

    assert change[key("requests_total", route="/classify", status=200)] == 3
    assert change[key("requests_total", route="/classify", status=422)] == 1
    assert change[key("requests_total", route="other", status=404)] == 1
    assert change[key("request_seconds_count", route="/classify")] == 4
    answered = {labels: value for (name, labels), value in change.items() if name == "msmlp_images_total"}
    assert answered == {
        key("", exit=1, reason="confident")[1]: 2,
        key("", exit=2, reason="confident")[1]: 1,
        key("", exit=3, reason="final")[1]: 1,
        key("", exit=1, reason="max_exit")[1]: 1,
    }
    assert [change[key("image_seconds_count", exit=k)] for k in (1, 2, 3)] == [3, 1, 1]
    assert [change[key("confidence_count", exit=k)] for k in (1, 2, 3)] == [3, 1, 1]
    # Five images waited for the first stage, two for the second, one for the third.
    assert [change[key("stage_queue_seconds_count", stage=k)] for k in (1, 2, 3)] == [5, 2, 1]
    assert [change[key("stage_batch_size_sum", stage=k)] for k in (1, 2, 3)] == [5, 2, 1]
    for k in (1, 2, 3):
        ran = sum(stage == k - 1 for stage, _ in backend.batches)
        assert change[key("stage_batch_size_count", stage=k)] == ran
        assert change[key("stage_compute_seconds_count", stage=k)] == ran
    cost = service.facts.gflops
    assert change[key("gflops_total")] == pytest.approx(3 * cost[0] + cost[1] + cost[2])
    assert change[key("gflops_saved_total")] == pytest.approx(5 * cost[2] - (3 * cost[0] + cost[1] + cost[2]))


def test_confidences_fall_into_their_buckets(running: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, _, _ = running
    before = scrape(client)
    assert send(client, (0.52,), (0.98,), (0.98,)).status_code == 200
    change = grown(before, scrape(client))
    for edge in SCORES:
        expected = 0 if edge < 0.52 else 1 if edge < 0.98 else 3
        assert change.get(key("confidence_bucket", exit=1, le=edge), 0) == expected


def test_gauges_of_an_idle_service(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        now = scrape(client)
    assert now[key("capacity_images")] == 1024
    assert now[key("inflight_images")] == 0
    assert now[key("engine_up")] == 1
    assert [now[key("queue_images", stage=k)] for k in (1, 2, 3)] == [0, 0, 0]
    assert [now[key("oldest_wait_seconds", stage=k)] for k in (1, 2, 3)] == [0, 0, 0]
    assert [now[key("effective_threshold", exit=k)] for k in (1, 2)] == service.policy.plan(
        RequestOptions()
    ).thresholds.tolist()
    assert now[key("throughput_images_per_second")] >= 0
    assert now[key("model_info", **service.facts.model, backend="fake", device="none")] == 1


def test_no_client_can_make_a_new_label_value(running: tuple[httpx.Client, Service, FakeBackend]) -> None:
    client, _, _ = running
    send(client, (1.0,))
    client.get("/nowhere")
    client.put("/model")
    known = {(name, tuple(label for label, _ in labels)) for name, labels in scrape(client)}
    series = len(scrape(client))
    for number in range(20):
        client.get(f"/nowhere-{number}", headers={"X-Request-ID": f"id-{number}"})
        client.request(f"VERB{number}", "/model")
        client.post("/classify", params={f"option{number}": "1"}, content=b"x", headers={"Content-Type": "image/png"})
        send(client, (1.0,), policy=f"policy-{number}", thresholds="")
    after = scrape(client)
    assert {(name, tuple(label for label, _ in labels)) for name, labels in after} == known
    values = {value for _, labels in after for label, value in labels if label != "le"}
    assert not [value for value in values if "-1" in value or "VERB" in value or "option" in value]
    # At most the two answers that had not been given before, 422 and 405 of a route, may have added series.
    assert len(after) - series <= 4
