"""Gauges of a service on a fake backend that can be held."""

import os
from pathlib import Path

import httpx

from tests.fakes import picture
from tests.servers import encoded, fake_backend, fake_service, knock, serving, wait_until


def value(client: httpx.Client, series: str) -> float:
    """What one series shows now."""
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
    return float(line.split()[-1])


def test_the_backlog_is_predicted_while_a_request_is_held(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    files = [("images", encoded(picture(0.1, 0.2, 0.3, size=32)))] * 4
    with serving(service) as client:
        assert value(client, "msmlp_backlog_seconds") == 0
        with backend.gate.held(), knock(client, files=files, params={"thresholds": "1,1"}):
            backend.gate.wait_until_reached()
            load = service.engine.worker.load
            assert load is not None
            assert value(client, "msmlp_backlog_seconds") == load.backlog_seconds > 0
        wait_until(lambda: value(client, "msmlp_backlog_seconds") == 0)


def test_work_is_what_full_batches_would_have_taken(tiny_weights: Path) -> None:
    backend = fake_backend()
    service = fake_service(tiny_weights, lambda: backend)
    files = [("images", encoded(picture(0.1, 0.2, 0.3, size=32)))] * 4
    with serving(service) as client:
        assert value(client, "msmlp_work_seconds_total") == 0
        grown = []
        for _ in range(2):
            before = value(client, "msmlp_work_seconds_total")
            assert client.post("/classify", files=files, params={"thresholds": "1,1"}).status_code == 200
            wait_until(lambda: value(client, "msmlp_backlog_seconds") == 0)
            grown.append(value(client, "msmlp_work_seconds_total") - before)
        load = service.engine.worker.load
        assert load is not None
        assert value(client, "msmlp_work_seconds_total") == load.work_seconds
    assert min(grown) > 0


def test_every_exit_has_its_price(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend)
    with serving(service) as client:
        for exit, gflops in enumerate(service.facts.gflops, start=1):
            assert value(client, f'msmlp_exit_gflops{{exit="{exit}"}}') == gflops


def test_the_process_says_what_it_uses(tiny_weights: Path) -> None:
    with serving(fake_service(tiny_weights, fake_backend)) as client:
        assert value(client, "process_resident_memory_bytes") > 2**20
        assert value(client, "process_virtual_memory_bytes") > value(client, "process_resident_memory_bytes")
        cpu = sum(os.times()[:2])
        assert 0 < value(client, "process_cpu_seconds_total") < cpu + 1
        assert 0 < value(client, "process_open_fds") < value(client, "process_max_fds")
        assert value(client, "process_start_time_seconds") > 1.6e9
