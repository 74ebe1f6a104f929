"""Health, `/model`, `/metrics` and the documentation of a running service."""

import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from msmlp.model.weights.info import weights_info
from msmlp.service.service import Service


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


def test_model_says_what_msmlp_info_does(client: httpx.Client, service: Service) -> None:
    said, info = client.get("/model").json(), weights_info(service.settings.weights)
    assert said["default_policy"] == "balanced"
    for field in ("name", "version", "cascade", "classes", "preprocess", "exits", "operating_points", "results"):
        assert said[field] == info[field]
    assert {"gflops", "gflops_unfolded"} < set(said["exits"][0])


def test_model_tells_nothing_of_the_machine_that_trained(client: httpx.Client, service: Service) -> None:
    text = client.get("/model").text
    command = service.weights.manifest.training["command"]
    assert command
    assert json.dumps(command)[1:-1] not in text
    assert str(service.settings.weights) not in text
    assert str(service.settings.weights.parent) not in text


def test_metrics_are_prometheus_text(client: httpx.Client, service: Service) -> None:
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    (info,) = families["msmlp_model_info"].samples
    assert info.labels == {**service.facts.model, "backend": "onnx", "device": "cpu"}
    assert info.value == 1


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
