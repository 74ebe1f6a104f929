"""docs/http.md: its commands run as they stand, against the shipped weights, and its tables leave nothing out."""

import json
import re
from functools import partial
from typing import Any

import pytest

from msmlp.service.errors import STATUS
from msmlp.service.http.schemas import Answer, ImageAnswer, Problem, StreamLine
from msmlp.service.options import expected, schemas
from tests.docs.commands import blocks_of
from tests.docs.test_readme import ROOT

PAGE = (ROOT / "docs" / "http.md").read_text()
blocks = partial(blocks_of, PAGE)


def table(section: str) -> list[list[str]]:
    """The rows of the tables in a section, the first cell split at commas."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def documents(printed: str) -> list[dict[str, Any]]:
    """JSON documents, one after another."""
    found, decoder, rest = [], json.JSONDecoder(), printed.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


RAW, FORM, JSON, CHOICES, STREAM, ERROR, HEADERS, OTHERS = blocks("bash")


@pytest.mark.parametrize("block", [RAW, FORM, JSON, CHOICES])
def test_each_request_is_answered(run: Any, block: str) -> None:
    answers = documents(run(block))
    assert len(answers) == block.count("localhost:8000")
    for answer in answers:
        assert "results" in answer, answer
        assert Answer.model_validate(answer)
        assert all(result["label"] for result in answer["results"])


def test_each_choice_is_kept(run: Any) -> None:
    floor, budget, own, anytime = documents(run(CHOICES))
    assert floor["operating_point"]["expected_accuracy"] >= 0.78
    assert all(result["exit"] <= 2 for result in floor["results"])
    assert budget["operating_point"]["expected_gflops"] <= 0.006
    assert own["operating_point"]["thresholds"] == [0.7, 0.5]
    assert all(result["gflops"] <= 0.015 for result in own["results"])
    assert anytime["operating_point"]["source"] == "default"


def test_a_stream_is_as_described(run: Any) -> None:
    lines = documents(run(STREAM))
    assert all(StreamLine.model_validate(line) for line in lines)
    assert sorted(line["index"] for line in lines if line["final"]) == [0, 1]
    assert all((line["reason"] == "goes_on") != line["final"] for line in lines)


def test_the_error_shown_is_the_one_that_comes(run: Any) -> None:
    [said] = documents(run(ERROR))
    shown = json.loads(blocks("json")[0])
    assert said.keys() == shown.keys()
    for field in ("detail", "code", "errors", "type", "status"):
        assert said[field] == shown[field]


def test_the_headers_are_there(run: Any) -> None:
    printed = run(HEADERS).lower()
    assert "x-request-id: cat-1" in printed
    assert re.search(r"server-timing: decode;dur=[\d.]+, queue;dur=[\d.]+, compute;dur=[\d.]+", printed)


def test_the_other_routes_answer(run: Any) -> None:
    ready, live, model, metrics = [run(line) for line in OTHERS.splitlines()]
    assert (json.loads(ready), json.loads(live)) == ({"ready": True}, {"live": True})
    assert json.loads(model)["operating_points"]
    assert "msmlp_engine_up 1.0" in metrics


def test_the_options_are_those_of_the_service() -> None:
    rows = [f"| `{name}` | {expected(schema)} | {schema['description']} |" for name, schema in schemas().items()]
    assert "\n".join(rows) + "\n\n" in PAGE


OF_CONNECTIONS = {
    (400, "bad_request"),
    (408, "head_timeout"),
    (501, "not_implemented"),
    (503, "too_many_connections"),
}
"""Before there is a request that the application could answer."""


def test_every_error_is_listed_with_its_status_and_none_else() -> None:
    listed = {(int(row[0]), code) for row in table("Errors")[2:] for code in names(row[1])}
    known = {(int(status), code) for status, code in STATUS.values() if code != "unknown_model"}
    assert listed == known | {*OF_CONNECTIONS, (404, "not_found"), (405, "method_not_allowed")}


def test_every_field_and_reason_is_documented() -> None:
    section = PAGE.partition("\n## The answer\n")[2].partition("\n## Streams\n")[0]
    told = set(re.findall(r"`(\w+)`", section))
    assert set(Answer.model_fields) <= told
    assert set(ImageAnswer.model_fields) - {"index", "latency_ms"} <= told
    reasons = ImageAnswer.model_fields["reason"].annotation.__args__  # type: ignore[union-attr]
    assert set(reasons) <= told
    assert set(Problem.model_fields) <= set(re.findall(r"`(\w+)`", PAGE.partition("\n## Errors\n")[2]))
