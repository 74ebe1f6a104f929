import socket
from pathlib import Path

import pytest

from msmlp.model.backends.slots import slot_bytes
from msmlp.model.weights import load_weights
from msmlp.service.engine.core import SHADOW_SLOTS
from msmlp.service.engine.transport import InlineWorker
from msmlp.service.errors import DrainingError, StartingError
from msmlp.service.frontends.board import Board, Column
from msmlp.service.frontends.channel import Channel
from msmlp.service.frontends.peers import Peers
from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.fakes import picture, pictures
from tests.servers import encoded, fake_backend, fake_service, serving


@pytest.mark.parametrize(("shadow", "reserve"), [(0.0, 0), (0.01, SHADOW_SLOTS)])
def test_capacity_is_what_free_memory_holds_less_the_slots_of_shadows(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, shadow: float, reserve: int
) -> None:
    free = 4 * 501 * slot_bytes(load_weights(tiny_weights).manifest.cascade, 4)
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
        service.peers = Peers(board, 1, Channel(near))
        with pytest.raises(StartingError):
            service.check_any_ready()
        board.put(2, Column.READY, 1)
        service.check_any_ready()
        with pytest.raises(StartingError):
            service.check_ready()
        for row, rate in enumerate((10.0, 20.0, 30.0)):
            board.put(row, Column.RATE, rate)
        service.peers.look()
        assert service.images_per_second() == 40  # and its own, which is nothing yet
        service.draining = True
        with pytest.raises(DrainingError):
            service.check_any_ready()


def test_graphs_that_match_are_served_inline_though_torch_is_installed(tiny_weights: Path) -> None:
    assert isinstance(build_service(Settings(weights=tiny_weights, device="cpu")).engine.worker, InlineWorker)


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
