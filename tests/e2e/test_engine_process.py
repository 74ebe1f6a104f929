"""`msmlp serve --engine process`, whose engine is killed while it serves."""

import os
import re
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.fakes import PATIENCE_SECONDS
from tests.processes import Served, msmlp_serve
from tests.servers import encoded, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def engine_of(served: Served) -> int:
    """The process id of a server's engine: the one of its children that runs torch."""
    (pid,) = {pid for pid in _children(served.process.pid) if _has_torch(pid)}
    return pid


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def _has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def is_ready(client: httpx.Client) -> bool:
    return client.get("/readyz").is_success


def test_every_request_is_answered_while_the_engine_is_killed_and_comes_back(tiny_weights: Path) -> None:
    body = encoded(np.zeros((32, 32, 3), dtype=np.uint8))
    killed = threading.Event()
    with msmlp_serve(tiny_weights, "--engine", "process", "--backend", "torch") as served:
        with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
            wait_until(lambda: is_ready(client))
            engine = engine_of(served)
            assert not _has_torch(served.process.pid), "the server's own process must not import torch"

            def ask(_: int) -> tuple[Counter[int], int]:
                statuses: Counter[int] = Counter()
                last = 0
                while not (killed.is_set() and last == 200 and statuses[503]):
                    answer = client.post("/classify", content=body, headers={"Content-Type": "image/png"})
                    last = answer.status_code
                    statuses[last] += 1
                    if last == 503:
                        assert answer.json()["code"] in ("engine_down", "starting")
                        assert int(answer.headers["Retry-After"]) > 0
                return statuses, last

            with ThreadPoolExecutor(8) as pool:
                asking = [pool.submit(ask, number) for number in range(8)]
                wait_until(lambda: "msmlp_requests_total" in client.get("/metrics").text)
                os.kill(engine, signal.SIGKILL)
                killed.set()
                outcomes = [each.result(PATIENCE_SECONDS) for each in asking]
            assert all(set(statuses) == {200, 503} for statuses, _ in outcomes)
            assert is_ready(client)
            assert re.search(r"^msmlp_engine_restarts_total 1.0$", client.get("/metrics").text, re.MULTILINE)
            assert re.search(r"^msmlp_inflight_images 0.0$", client.get("/metrics").text, re.MULTILINE)
            second = engine_of(served)
            assert second != engine
            memory = re.search(
                r"^msmlp_engine_process_resident_memory_bytes (\S+)$", client.get("/metrics").text, re.MULTILINE
            )
            assert memory
            pages = int(Path(f"/proc/{second}/statm").read_text().split()[1])
            assert float(memory[1]) == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.2)
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0
        assert "was killed by signal 9" in served.log
        assert "Traceback" not in served.log
        assert not Path(f"/proc/{second}").exists()


def shown(client: httpx.Client, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, series
    return float(found[1])


def test_with_two_devices_the_service_goes_on_while_one_engine_is_replaced(tiny_weights: Path) -> None:
    image = encoded(np.zeros((32, 32, 3), dtype=np.uint8))

    def ask(client: httpx.Client) -> int:
        return client.post("/classify", content=image, headers={"Content-Type": "image/png"}).status_code

    with msmlp_serve(tiny_weights, "--devices", "cpu,cpu", "--backend", "onnx", "--capacity", "128") as served:
        with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
            wait_until(lambda: shown(client, 'msmlp_engines{state="up"}') == 2)
            assert shown(client, "msmlp_capacity_images") == 128
            engines = {pid for pid in _children(served.process.pid) if _has_onnx(pid)}
            assert len(engines) == 2
            os.kill(min(engines), signal.SIGKILL)
            wait_until(lambda: shown(client, 'msmlp_engines{state="restarting"}') == 1)
            assert shown(client, "msmlp_engine_up") == 1
            assert shown(client, "msmlp_capacity_images") == 64
            assert is_ready(client)
            assert [ask(client) for _ in range(5)] == [200] * 5
            wait_until(lambda: shown(client, 'msmlp_engines{state="up"}') == 2)
            assert shown(client, "msmlp_engine_restarts_total") == 1
            assert shown(client, "msmlp_capacity_images") == 128
            assert ask(client) == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0
        assert "Traceback" not in served.log
        assert not any(Path(f"/proc/{pid}").exists() for pid in engines)


def _has_onnx(pid: int) -> bool:
    return "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()
