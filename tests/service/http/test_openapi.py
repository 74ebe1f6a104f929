"""The OpenAPI document: complete, true to what is sent and received, and held against a running server."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings
from pydantic import BaseModel, TypeAdapter

from msmlp.service.errors import STATUS
from msmlp.service.http.openapi import PROBLEMS
from msmlp.service.http.schemas import Answer, ImageProblem, ModelDescription, Problem, StreamLine, StreamProblem
from msmlp.service.options import EXCLUSIVE, RequestOptions
from tests import reloads

PNG = {"Content-Type": "image/png"}
PROBLEM_JSON = "application/problem+json"


@pytest.fixture(scope="module")
def openapi(own_client: httpx.Client) -> dict[str, Any]:
    return own_client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operation(openapi: dict[str, Any]) -> dict[str, Any]:
    return openapi["paths"]["/classify"]["post"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


@pytest.mark.system  # it takes ten seconds or more
def test_the_service_does_what_the_document_says(own_client: httpx.Client, tmp_path: Path) -> None:
    """Schemathesis with all its checks: statuses, content types, headers, bodies, methods, good and bad data."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", Path(__file__).with_name("schemathesis.toml")),
            *("run", str(own_client.base_url.join("/openapi.json"))),
            *("--seed", "1", "--max-examples", str(settings.default.max_examples // 4)),
            # One worker: Python 3.11 cannot read syntax trees on two threads at once, as hypothesis does.
            *("--generation-database", "none", "--no-color", "--workers", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generated" in done.stdout


def test_every_route_is_there_and_described(openapi: dict[str, Any]) -> None:
    routes = {(method, path) for path, methods in openapi["paths"].items() for method in methods}
    assert routes == {
        ("post", "/classify"),
        ("put", "/classify"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
        ("get", "/model"),
        ("get", "/docs"),
    }
    for methods in openapi["paths"].values():
        for each in methods.values():
            assert each["summary"]
            assert each["description"]
            for response in each["responses"].values():
                assert response["description"]
                assert response["headers"]["X-Request-ID"]["required"]
    assert "404" in openapi["info"]["description"]
    assert "405" in openapi["info"]["description"]


def test_every_reference_is_there(openapi: dict[str, Any]) -> None:
    found = set(references(openapi))
    assert found
    for reference in found:
        node: Any = openapi
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_it_has_our_errors_and_not_fastapis(openapi: dict[str, Any], operation: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(openapi)
    assert set(openapi["components"]["schemas"]["Problem"]["properties"]) == set(Problem.model_fields)
    assert set(operation["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"}
    for methods in openapi["paths"].values():
        for each in methods.values():
            assert "500" in each["responses"]
            for status, response in each["responses"].items():
                if status != "200":
                    content = response["content"]
                    assert list(content) == [PROBLEM_JSON]
                    assert content[PROBLEM_JSON]["schema"] == {"$ref": "#/components/schemas/Problem"}
                    assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))


def test_every_error_of_classify_has_an_example(openapi: dict[str, Any], operation: dict[str, Any]) -> None:
    shown = {
        (int(status), code)
        for status, response in operation["responses"].items()
        for code in response["content"].get(PROBLEM_JSON, {}).get("examples", {})
    }
    told = {(int(status), code) for status, code in STATUS.values()}
    assert shown == {(status, code) for status, code in told if code not in {"unknown_model", *reloads.CODES}}
    elsewhere = openapi["components"]["responses"]
    assert set(elsewhere) == {"NotFound", "MethodNotAllowed"}
    for status, response in PROBLEMS.items():
        for code, example in response["content"][PROBLEM_JSON]["examples"].items():
            document = example["value"]
            assert Problem.model_validate(document).model_dump(exclude_none=True) == document
            assert (document["status"], document["code"]) == (status, code)


def test_unknown_paths_and_methods_answer_as_their_examples_do(own_client: httpx.Client) -> None:
    for answer in (own_client.get("/nowhere"), own_client.get("/classify")):
        [(code, example)] = PROBLEMS[answer.status_code]["content"][PROBLEM_JSON]["examples"].items()
        assert answer.json() == {**example["value"], "request_id": answer.headers["X-Request-ID"]}
        assert answer.json()["code"] == code


def test_the_requests_shown_work(own_client: httpx.Client, operation: dict[str, Any]) -> None:
    shown = [each["value"] for each in operation["requestBody"]["content"]["application/json"]["examples"].values()]
    assert any("deadline_ms" in request for request in shown)
    for request in shown:
        answer = own_client.post("/classify", json=request)
        assert answer.status_code in ((200, 504) if "deadline_ms" in request else (200,)), answer.text


def fields(node: Any) -> Any:
    """A document's names without its values, lists by their first entry."""
    if isinstance(node, dict):
        return {name: fields(value) for name, value in node.items()}
    return [fields(node[0])] if isinstance(node, list) and node else None


def test_the_answer_shown_has_the_fields_of_those_that_come(
    own_client: httpx.Client, operation: dict[str, Any], cat_photo: bytes
) -> None:
    content = operation["responses"]["200"]["content"]
    answer = own_client.post("/classify", content=cat_photo, headers={"Content-Type": "image/jpeg"}).json()
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Answer"}
    assert fields(content["application/json"]["example"]) == fields(answer)
    *_, line = own_client.post(
        "/classify?stream=true", content=cat_photo, headers={"Content-Type": "image/jpeg"}
    ).iter_lines()
    assert fields(content["application/x-ndjson"]["example"]) == fields(json.loads(line))


def test_answers_have_the_fields_of_their_schemas_and_no_others(
    own_client: httpx.Client, digit_files: list[bytes]
) -> None:
    def same(model: type[BaseModel], document: Any) -> None:
        assert model.model_validate(document).model_dump(mode="json", exclude_unset=True) == document
        assert set(document) == set(model.model_fields)

    images = [("images", ("x", image)) for image in digit_files[:8]]
    same(Answer, own_client.post("/classify", files=images).json())
    same(ModelDescription, own_client.get("/model").json())
    problem = own_client.post("/classify", content=b"x", headers=PNG).json()
    same(Problem, problem)
    same(ImageProblem, problem["errors"][0])
    lines = [
        json.loads(line) for line in own_client.post("/classify?stream=true&deadline_ms=1e9", files=images).iter_lines()
    ]
    assert [line["index"] for line in lines if line["final"]]
    for line in lines:
        assert TypeAdapter(StreamLine).validate_python(line).model_dump(exclude_unset=True) == line
        assert set(StreamLine.model_fields) - set(line) == (set() if line["final"] else {"operating_point"})
    broken = {**problem, "final": True}
    assert StreamProblem.model_validate(broken).model_dump() == broken


def test_every_option_is_described_alike_in_query_form_and_json(operation: dict[str, Any]) -> None:
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert set(parameters) == set(RequestOptions.model_fields)
    assert all(p["in"] == "query" and not p.get("required") for p in parameters.values())
    query = {name: p["schema"] for name, p in parameters.items()}
    content = operation["requestBody"]["content"]
    assert {
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/bmp",
        "image/gif",
        "image/avif",
        "application/octet-stream",
    } < set(content)
    for kind in ("multipart/form-data", "application/json"):
        excluded = content[kind]["schema"]["dependentSchemas"]
        assert {frozenset((one, other)) for one in excluded for other in excluded[one]["properties"]} == {
            frozenset(pair) for pair in EXCLUSIVE
        }
        assert not any(value for one in excluded.values() for value in one["properties"].values())
        properties = dict(content[kind]["schema"]["properties"])
        assert properties.pop("images")["minItems"] == 1
        assert properties == query
    for one, other in [*EXCLUSIVE, *(pair[::-1] for pair in EXCLUSIVE)]:
        assert re.search(rf"(Excludes|Not allowed with) .*\b{other}\b", parameters[one]["description"])
