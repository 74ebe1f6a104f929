import asyncio
import resource
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msmlp.model.backends.select import Selection
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.errors import OptionError
from msmlp.model.weights import Calibration, Weights, load_calibration, load_weights
from msmlp.service.engine.core import SHADOW_SLOTS
from msmlp.service.engine.transport import InlineWorker
from msmlp.service.errors import BadWeightsError, DrainingError, StartingError
from msmlp.service.frontends.board import Board, Column, Others
from msmlp.service.frontends.line import Line
from msmlp.service.service import EnginePlan, build_service, plan_engine
from msmlp.service.settings import Settings, load_settings
from tests.fakes import picture, pictures
from tests.servers import encoded, fake_backend, fake_service, serving


@pytest.mark.parametrize(("shadow", "reserve"), [(0.0, 0), (0.01, SHADOW_SLOTS)])
def test_capacity_is_what_free_memory_holds_less_the_slots_of_shadows(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, shadow: float, reserve: int
) -> None:
    free = 4 * 501 * load_weights(tiny_weights).manifest.cascade.shape.slot_bytes(4)
    monkeypatch.setattr("msmlp.model.backends.onnx.cpu.free_host_memory", lambda: free)
    service = build_service(Settings(weights=tiny_weights, device="cpu", engine="thread", shadow=shadow))
    with serving(service) as client:
        assert f"msmlp_capacity_images {500 - reserve}.0" in client.get("/metrics").text


def test_too_little_memory_ends_the_start_with_a_line_that_says_so(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("msmlp.model.backends.onnx.cpu.free_host_memory", lambda: 1000)
    service = build_service(Settings(weights=tiny_weights, device="cpu", engine="thread"))
    with serving(service, wait=False):
        service.engine.worker.join(60)
    assert "engine stopped: 96 slots need" in caplog.text


def test_no_request_has_more_images_than_there_are_permits(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, lambda: fake_backend(capacity=3))
    assert service.max_images == service.settings.max_images  # capacity is not known yet
    image = encoded(pictures(1, 1.0, size=32)[0])
    with serving(service) as client:
        assert service.max_images == 3
        for count, status in ((3, 200), (4, 413)):
            files = [("images", image)] * count
            assert client.post("/classify", files=files).status_code == status


def test_it_is_ready_and_as_fast_as_its_front_ends_together(tiny_weights: Path) -> None:
    service, board = fake_service(tiny_weights, fake_backend), Board(3)
    near, far = socket.socketpair()
    with near, far:
        service.others = Others(board, 1, Line(near))
        with pytest.raises(StartingError):
            service.check_any_ready()
        board.put(2, Column.READY, 1)
        service.check_any_ready()
        with pytest.raises(StartingError):
            service.check_ready()
        for row, rate in enumerate((10.0, 20.0, 30.0)):
            board.put(row, Column.RATE, rate)
        service.others.look()
        assert service.images_per_second() == 40  # and its own, which is nothing yet
        service.draining = True
        with pytest.raises(DrainingError):
            service.check_any_ready()


def test_graphs_that_match_are_served_inline_though_torch_is_installed(tiny_weights: Path) -> None:
    assert isinstance(build_service(Settings(weights=tiny_weights, device="cpu")).engine.worker, InlineWorker)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("/srv/models/cifar", "cifar/manifest.json: damaged. Export it again."),
        (".", "manifest.json: damaged. Export it again."),
    ],
)
def test_why_a_reload_failed_is_told_without_the_path(tiny_weights: Path, folder: str, told: str) -> None:
    service = fake_service(tiny_weights, fake_backend)
    service.settings = service.settings.model_copy(update={"weights": Path(folder)})

    async def ask(what: str, seconds: float) -> BadWeightsError:
        return BadWeightsError(f"{Path(folder) / 'manifest.json'}: damaged. Export it again.")

    service.others = SimpleNamespace(ask=ask)  # type: ignore[assignment]
    with pytest.raises(BadWeightsError) as raised:
        asyncio.run(service.reload())
    assert str(raised.value) == told


# --- devices ---------------------------------------------------------------------------------------------------------


def planned(weights: Path, **settings: Any) -> tuple[EnginePlan, list[BackendSettings]]:
    """A plan, and what the backends were selected with, one for each kind of device."""
    asked: list[BackendSettings] = []

    def select(_weights: Weights, _calibration: Calibration, wanted: BackendSettings, _backend: str) -> Selection:
        asked.append(wanted)
        return Selection("onnx", "cpu", "", fake_backend)

    loaded = load_weights(weights)
    return plan_engine(Settings(weights=weights, **settings), loaded, load_calibration(loaded), select), asked


def test_every_device_gets_an_engine_process_and_its_share_of_the_capacity(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plan, asked = planned(tiny_weights, devices="0,1,cpu", capacity=100, shadow=0.01)
    assert plan.layout.engine == "process"
    assert [gpu for _, gpu in plan.selected] == ["0", "1", None]
    assert [(each.device, each.capacity) for each in asked] == [("cuda", 33), ("cpu", 33)]
    hosts = plan.hosts().all
    assert [(host._spec.gpu, host._spec.permits, host._spec.shadow_every) for host in hosts] == [
        ("0", 33, 100),
        ("1", 33, 100),
        (None, 33, 100),
    ]
    assert len({host.address for host in hosts}) == 3


def test_numbers_are_those_of_the_gpus_that_this_process_may_use(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    plan, _ = planned(tiny_weights, devices="1,0")
    assert [gpu for _, gpu in plan.selected] == ["GPU-7", "5"]
    with pytest.raises(OptionError, match="there is no GPU 2"):
        planned(tiny_weights, devices="0,2")


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_devices_need_processes(tiny_weights: Path, engine: str) -> None:
    with pytest.raises(OptionError, match=f"not --engine {engine}"):
        planned(tiny_weights, devices="cpu,cpu", engine=engine)


@pytest.mark.parametrize("devices", ["cuda", "0,", "0 1", "-1"])
def test_devices_are_numbers_or_cpu(devices: str) -> None:
    with pytest.raises(OptionError, match="--devices"):
        load_settings(devices=devices)


def test_without_devices_there_is_one(tiny_weights: Path) -> None:
    plan, asked = planned(tiny_weights, engine="process")
    assert (plan.layout.engine, plan.selected[0][1], len(plan.selected)) == ("process", None, 1)
    assert [(each.device, each.capacity) for each in asked] == [("auto", None)]


def test_services_of_two_front_ends_use_one_engine(tiny_weights: Path) -> None:
    """As a supervisor sets them up: it hosts the engine, they get its address."""
    settings = Settings(weights=tiny_weights, engine="process", device="cpu", backend="onnx", capacity=64)
    weights = load_weights(tiny_weights)
    (host,) = plan_engine(settings, weights, load_calibration(weights)).hosts().all
    host.start()
    try:
        services = [build_service(settings, engines=[host.address]) for _ in range(2)]
        with serving(services[0]) as one, serving(services[1]) as other:
            for client in (one, other):
                answer = client.post("/classify", content=encoded(picture(1.0, size=32)), headers=PNG)
                assert answer.status_code == 200
                assert "msmlp_capacity_images 64.0" in client.get("/metrics").text
                assert 'msmlp_engines{state="up"} 1.0' in client.get("/metrics").text
    finally:
        host.stop()
        assert host.wait(60)


# --- the memory for bodies, over a real socket -----------------------------------------------------------------------


IMAGE = encoded(picture(1.0, size=32))
PNG = {"Content-Type": "image/png"}


def test_bodies_beyond_the_memory_for_them_are_shed_and_their_bytes_come_back(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend, max_bodies_bytes=2 * len(IMAGE))
    with serving(service) as client:
        for _ in range(5):  # one after the other they fit
            assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 200
        answer = client.post("/classify", content=3 * IMAGE, headers=PNG)
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 200
        assert 'msmlp_shed_total{reason="memory"} 1.0' in client.get("/metrics").text


def test_what_waits_for_decoding_counts_in_brown_out(tiny_weights: Path) -> None:
    service = build_service(Settings(weights=tiny_weights, device="cpu", engine="thread", decode_threads=1))
    may_go = threading.Event()

    async def main() -> None:
        service.decoders.threads.submit(may_go.wait, 60)
        large = encoded(np.zeros((1000, 1000, 3), np.uint8))
        decoding = asyncio.create_task(service.decoders.decode([large] * 20, 32))
        await asyncio.sleep(0)
        assert service.engine.decode_backlog() > 0
        may_go.set()
        await decoding
        while service.engine.decode_backlog():  # the last thread may not have ended its turn
            await asyncio.sleep(0.01)

    asyncio.run(main())
    service.decoders.shutdown()


@pytest.mark.parametrize(
    ("files", "most", "grpc_port", "expected"),
    [
        (1024, 10_000, None, 960),
        (1024, 10_000, 0, 480),
        (1024, 100, 0, 100),
        (10, 100, None, 1),
        (resource.RLIM_INFINITY, 10_000, 0, 10_000),
    ],
)
def test_there_are_never_more_connections_than_files_allow(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, files: int, most: int, grpc_port: int | None, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    service = build_service(Settings(weights=tiny_weights, device="cpu", max_connections=most, grpc_port=grpc_port))
    assert service.connections == expected
