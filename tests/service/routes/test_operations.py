"""Health, `/model`, `/metrics` and the documentation of a running service."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.info import weights_info
from service.schemas import Answer, Problem
from service.state import Service


def test_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"live": True}
    assert client.get("/readyz").json() == {"ready": True}


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
    assert info.labels == {**service.facts.model, "backend": "torch", "device": "cpu"}
    assert info.value == 1


def test_docs(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/openapi.json" in answer.text


@pytest.fixture
def openapi(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def test_every_reference_of_the_openapi_document_is_there(openapi: dict[str, Any]) -> None:
    found = set(references(openapi))
    assert found
    for reference in found:
        node: Any = openapi
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_the_openapi_document_has_our_errors_and_not_fastapis(openapi: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(openapi)
    schemas = openapi["components"]["schemas"]
    assert set(schemas["Problem"]["properties"]) == set(Problem.model_fields)
    responses = openapi["paths"]["/classify"]["post"]["responses"]
    assert set(responses) == {"200", "400", "413", "415", "422", "429", "500", "503", "504"}
    for status, response in responses.items():
        if status != "200":
            assert list(response["content"]) == ["application/problem+json"]
    assert responses["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Answer"}


def test_the_openapi_document_describes_the_answers_that_come(
    client: httpx.Client, openapi: dict[str, Any], cat_photo: bytes
) -> None:
    answer = client.post("/classify", content=cat_photo, headers={"Content-Type": "image/jpeg"}).json()
    assert Answer.model_validate(answer).model_dump() == answer
    problem = client.post("/classify", content=b"x", headers={"Content-Type": "image/jpeg"}).json()
    assert Problem.model_validate(problem).model_dump(exclude_none=True) == problem
    operation = openapi["paths"]["/classify"]["post"]
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert set(parameters) == {
        "thresholds",
        "policy",
        "budget_gflops",
        "min_accuracy",
        "max_gflops",
        "min_exit",
        "max_exit",
        "top_k",
        "accuracy_floor",
        "deadline_ms",
        "degrade",
        "stream",
    }
    assert all(p["in"] == "query" and not p.get("required") for p in parameters.values())
    assert {"image/png", "image/jpeg", "multipart/form-data", "application/json"} <= set(
        operation["requestBody"]["content"]
    )
