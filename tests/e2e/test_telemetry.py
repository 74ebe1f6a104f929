"""Logs and traces of a real `msmlp serve`, whose traces go to a collector that is a real HTTP server."""

import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fakes import PATIENCE_SECONDS
from tests.processes import msmlp_serve, run_msmlp

JPEG = {"Content-Type": "image/jpeg"}


class Collector(ThreadingHTTPServer):
    """Takes traces over OTLP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()

    @property
    def spans(self) -> dict[str, Any]:
        """By name."""
        return {
            span.name: span
            for request in self.taken
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.add(self.path)
        self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_request_can_be_followed_from_its_answer_to_the_log_and_its_trace(
    tiny_weights: Path, cat_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as takes:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{takes.server_port}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        options = ("--traces", "--access-log", "--log-format", "json", "--engine", "process")
        with msmlp_serve(tiny_weights, *options) as running:
            running.wait_for("ready: ")
            answer = httpx.post(f"{running.url}/classify", content=cat_photo, headers=JPEG, timeout=PATIENCE_SECONDS)
            assert answer.status_code == 200, answer.text
            running.wait_for("msmlp.access")
            running.process.send_signal(signal.SIGTERM)
            assert running.end() == 0
            # What had not been sent is sent at the end.
            lines = [json.loads(line) for line in running.log.splitlines()]
        (access,) = [line for line in lines if line["logger"] == "msmlp.access"]
        request = takes.spans["POST /classify"]
        assert {"level", "logger", "message", "timestamp"} <= set.intersection(*map(set, lines))
        assert access["request_id"] == answer.json()["request_id"] == answer.headers["X-Request-ID"]
        assert access["trace_id"] == request.trace_id.hex()
        assert access["exits"] == {str(answer.json()["results"][0]["exit"]): 1}
        stages = [name for name in takes.spans if name.startswith("stage ")]
        assert len(stages) == answer.json()["results"][0]["exit"]
        assert {takes.spans[name].parent_span_id for name in stages} == {request.span_id}
        assert takes.paths == {"/v1/traces"}
        told = {one.key: one.value.string_value for one in takes.taken[0].resource_spans[0].resource.attributes}
        assert told == {"service.name": "msmlp", "deployment.environment": "test"}


def test_without_a_collector_it_serves_and_ends_in_order(
    tiny_weights: Path, cat_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    with msmlp_serve(tiny_weights, "--traces") as running:
        running.wait_for("engine: ready")
        for _ in range(3):
            answer = httpx.post(f"{running.url}/classify", content=cat_photo, headers=JPEG, timeout=PATIENCE_SECONDS)
            assert answer.status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert "Traceback" not in running.log


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_json_is_all_that_is_logged_from_the_start_to_the_end(tiny_weights: Path, engine: str) -> None:
    with msmlp_serve(tiny_weights, "--log-format", "json", "--log-level", "debug", "--engine", engine) as running:
        running.wait_for("ready: ")
        httpx.get(f"{running.url}/readyz", timeout=PATIENCE_SECONDS)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        lines = [json.loads(line) for line in running.log.splitlines()]
    assert not [line for line in lines if "color_message" in line]
    assert {"msmlp.server", "msmlp.engine", "msmlp.access", "uvicorn.error"} <= {line["logger"] for line in lines}


def test_what_the_extra_lacks_is_said_before_anything_is_started(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['opentelemetry.sdk'] = None\n")
    done = run_msmlp("serve", "--weights", tiny_weights, "--port", "0", "--traces", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--traces" in line
    assert 'pip install "msmlp[telemetry]"' in line
    assert sys.executable not in line
