"""docs/telemetry.md names what is really logged and traced."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import environment_variables as api_variables
from opentelemetry.sdk import environment_variables as sdk_variables
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from msmlp.service.telemetry.access_log import PROBES, log_access
from msmlp.service.telemetry.traces import Traces
from tests.docs.test_readme import ROOT
from tests.fakes import picture
from tests.servers import encoded, fake_backend, fake_service, serving

PAGE = (ROOT / "docs" / "telemetry.md").read_text()


def names_in(row: str) -> set[str]:
    """What the second column of a table's row names."""
    (cells,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    return set(re.findall(r"`([a-z]+\.[a-z_.]+)`", cells))


@pytest.fixture(scope="module")
def told(tiny_weights: Path) -> tuple[logging.LogRecord, dict[str, ReadableSpan]]:
    """The access log's line and the spans of a request that took the default operating point."""
    memory, lines = InMemorySpanExporter(), []
    service = fake_service(tiny_weights, fake_backend)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    service.records.observers += [Traces(provider, service.facts.model).ended, log_access]
    log = logging.getLogger("msmlp.access")
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with serving(service) as client:
            assert client.post("/classify", files=[("images", encoded(picture(0, 0, 0, size=32)))]).status_code == 200
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    return lines[0], {span.name: span for span in memory.get_finished_spans()}


def test_the_line_shown_has_the_fields_of_a_real_one(told: Any) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    shown = json.loads(block)
    line = told[0]
    ordinary = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    fields = {name: value for name, value in vars(line).items() if name not in ordinary}
    assert set(shown) == {*fields, "level", "logger", "message", "timestamp"}
    assert {name: type(shown[name]) for name in fields} == {name: type(value) for name, value in fields.items()}
    assert shown["logger"] == line.name


def test_every_attribute_of_a_span_is_named(told: Any) -> None:
    spans = told[1]
    request, stage = set(spans["POST /classify"].attributes), set(spans["stage 1"].attributes)
    rpc = {"rpc.system", "rpc.service", "rpc.method"}
    assert names_in("the request") == request | rpc
    assert names_in("`stage k`") == stage


def test_every_variable_is_one_that_the_library_reads() -> None:
    named = set(re.findall(r"`(OTEL_[A-Z_]+)`", PAGE))
    assert len(named) == 6
    assert named <= set(vars(sdk_variables)) | set(vars(api_variables))


def test_the_probes_that_are_named_are_probes() -> None:
    assert {"/livez", "/readyz", "/metrics"} <= PROBES
