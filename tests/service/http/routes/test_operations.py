"""Health, `/model`, `/metrics` and the documentation of a running service."""

import json
from collections import Counter
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from msmlp.model.weights import load_weights
from msmlp.model.weights.info import weights_info
from msmlp.service.telemetry.metrics import Metrics
from tests.servers import wait_until


def test_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"live": True}
    assert client.get("/readyz").json() == {"ready": True}


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_may_ask_without_a_body(client: httpx.Client, path: str) -> None:
    answer = client.head(path, headers={"X-Request-ID": "probe-1"})
    assert (answer.status_code, answer.content) == (200, b"")
    told = client.get(path, headers={"X-Request-ID": "probe-1"}).headers
    assert all(answer.headers[name] == told[name] for name in ("X-Request-ID", "Content-Type", "Content-Length"))
    refused = client.post(path)
    assert refused.status_code == 405
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD"}


PATHS = ("/", "/docs", "/livez", "/metrics", "/model", "/openapi.json", "/readyz", "/ui/index.html", "/nowhere")
OIP = "/v2/models/msmlp"


@pytest.mark.parametrize(
    "path", [*PATHS, "/v2", "/v2/health/ready", "/v2/models/stats", OIP, f"{OIP}/config", "/v2/models/other"]
)
def test_head_is_answered_wherever_get_is(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    if path not in ("/metrics", "/v2/models/stats", "/nowhere", "/v2/models/other"):  # which are never the same twice
        assert head.headers["Content-Length"] == got.headers["Content-Length"]


def test_head_is_no_way_to_what_get_does_not_have(client: httpx.Client) -> None:
    refused = client.head("/classify")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST, PUT")
    assert client.head("/v2/models/msmlp/infer").status_code == 405


def test_model_says_what_msmlp_info_does(client: httpx.Client, tiny_weights: Path) -> None:
    said, info = client.get("/model").json(), weights_info(tiny_weights)
    assert said["default_policy"] == "balanced"
    for field in ("name", "version", "cascade", "classes", "preprocess", "exits", "operating_points", "results"):
        assert said[field] == info[field]
    assert {"gflops", "gflops_unfolded"} < set(said["exits"][0])


def test_model_tells_nothing_of_the_machine_that_trained(client: httpx.Client, tiny_weights: Path) -> None:
    text = client.get("/model").text
    command = load_weights(tiny_weights).manifest.training["command"]
    assert command
    assert json.dumps(command)[1:-1] not in text
    assert str(tiny_weights) not in text
    assert str(tiny_weights.parent) not in text


def test_metrics_are_prometheus_text(client: httpx.Client, tiny_weights: Path) -> None:
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    (info,) = families["msmlp_model_info"].samples
    model = weights_info(tiny_weights)
    expected = {"name": model["name"], "version": model["version"], "backend": "onnx", "device": "cpu"}
    assert info.labels == expected
    assert info.value == 1


def samples(client: httpx.Client) -> Counter[str]:
    """A scrape, by series."""
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
    return Counter({series: float(value) for series, _, value in lines})  # type: ignore[arg-type]


def test_every_metric_of_the_contract_is_shown(client: httpx.Client) -> None:
    shown = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert shown >= {family.name for family in Metrics((1, 2, 3), "any", "1").registry.collect()}


def test_metrics_count_what_was_sent_and_answered(client: httpx.Client, digit_files: list[bytes]) -> None:
    price = client.get("/model").json()["exits"][1]["gflops"]
    before = samples(client)
    for number in range(1, 5):
        # Each on a connection of its own, which may be another front end's.
        files = [("images", file) for file in digit_files[:number]]
        options = {"thresholds": "1,0", "deadline_ms": 1e6}
        answer = httpx.post(client.base_url.join("/classify"), files=files, params=options, timeout=client.timeout)
        assert answer.status_code == 200, answer.text
        assert (
            httpx.post(
                client.base_url.join("/classify"), headers={"Content-Type": "x/y"}, timeout=client.timeout
            ).status_code
            == 415
        )
    expected = {
        'msmlp_requests_total{route="/classify",status="200"}': 4,
        'msmlp_requests_total{route="/classify",status="415"}': 4,
        'msmlp_request_seconds_count{route="/classify"}': 8,
        'msmlp_images_total{exit="2",reason="confident"}': 10,
        'msmlp_image_seconds_count{exit="2"}': 10,
        'msmlp_confidence_count{exit="2"}': 10,
        'msmlp_stage_queue_seconds_count{stage="2"}': 10,
        'msmlp_stage_batch_size_sum{stage="2"}': 10,
        'msmlp_deadline_total{outcome="met"}': 10,
        "msmlp_deadline_margin_seconds_count": 10,
        "msmlp_gflops_total": pytest.approx(10 * price, rel=1e-6),
        "msmlp_inflight_images": 0,
    }

    def rose() -> dict[str, float]:
        now = samples(client)
        return {series: now[series] - before[series] for series in expected}

    wait_until(lambda: rose() == expected)


def test_docs(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "openapi.json" in answer.text
    assert client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/model", "/metrics", "/docs"])
def test_every_answer_has_an_id(client: httpx.Client, path: str) -> None:
    answer = client.get(path, headers={"X-Request-ID": "probe-1"})
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"] == "probe-1"
