"""`msmlp serve` as a process: from the start to the signal."""

import io
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.exits.rule import exit_of
from msmlp.model.offline import run_every_exit
from msmlp.model.preprocess import load_image
from msmlp.model.weights import load_calibration, load_weights
from tests.fakes import PATIENCE_SECONDS
from tests.processes import Call, Served, msmlp_serve, run_msmlp

JPEG = {"Content-Type": "image/jpeg"}


def test_a_photograph_gets_the_label_and_exit_of_the_model_in_process(
    served: Served, tiny_weights: Path, cat_photo: bytes
) -> None:
    weights = load_weights(tiny_weights)
    calibration = load_calibration(weights)
    backend = StagedBackend(weights, BackendSettings("cpu", capacity=1, exits=Exits(calibration.file.temperatures)))
    outputs = run_every_exit(backend, load_image(cat_photo, backend.image_shape[0])[None])
    for point in calibration.points:
        answer = httpx.post(
            f"{served.url}/classify",
            params={"policy": point.name},
            content=cat_photo,
            headers=JPEG,
            timeout=PATIENCE_SECONDS,
        )
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        exit = int(exit_of(outputs.scores, np.array(point.thresholds))[0])
        assert result["exit"] == exit
        assert result["label"] == weights.manifest.classes[outputs.predictions[0, exit - 1]]


def test_no_version_leaves_the_server(served: Served) -> None:
    for path in ("/livez", "/nowhere", "/metrics"):
        answer = httpx.get(f"{served.url}{path}", timeout=PATIENCE_SECONDS)
        assert "server" not in answer.headers


def test_a_wish_for_a_websocket_is_answered_like_any_other(served: Served) -> None:
    wish = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    wish |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "X-Request-ID": "wish-1"}
    answer = httpx.get(f"{served.url}/classify", headers=wish, timeout=PATIENCE_SECONDS)
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (405, "wish-1")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "method_not_allowed"


def test_what_is_no_http_request_is_refused_as_the_documentation_says(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"no request\r\n\r\n")
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    assert f"| 400 | `{json.loads(body)['code']}` |" in page


def test_a_hundred_megapixels_are_refused_unread(served: Served) -> None:
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stream, "PNG")
    answer = httpx.post(
        f"{served.url}/classify",
        content=stream.getvalue(),
        headers={"Content-Type": "image/png"},
        timeout=PATIENCE_SECONDS,
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert "10000x10000" in answer.json()["detail"]


def test_a_signal_during_a_request_waits_for_its_answer(tiny_weights: Path, cat_photo: bytes) -> None:
    with msmlp_serve(tiny_weights) as running:
        running.wait_for("engine: ready")
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
            head = (
                f"POST /classify HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n"
                f"Content-Length: {len(cat_photo)}\r\nExpect: 100-continue\r\n\r\n"
            )
            connection.sendall(head.encode())
            # The server asks for the body once the request is being answered.
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            running.process.send_signal(signal.SIGTERM)
            running.wait_for("shutting down")
            connection.sendall(cat_photo)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        status_line, _, rest = received.partition(b"\r\n")
        assert status_line == b"HTTP/1.1 200 OK"
        assert json.loads(rest.partition(b"\r\n\r\n")[2])["results"][0]["label"]
        assert running.end() == 0
        assert "Traceback" not in running.log


@pytest.mark.usefixtures("interruptible")
def test_control_c_ends_an_idle_server_in_order(tiny_weights: Path) -> None:
    with msmlp_serve(tiny_weights) as running:
        running.wait_for("engine: ready")
        assert httpx.get(f"{running.url}/readyz", timeout=PATIENCE_SECONDS).status_code == 200
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 0
        assert "Traceback" not in running.log


def test_a_signal_while_warming_up_ends_it_too(tiny_weights: Path) -> None:
    with msmlp_serve(tiny_weights) as running:
        running.wait_for("Application startup complete|serving")
        assert running.url
        httpx.get(f"{running.url}/livez", timeout=PATIENCE_SECONDS)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert "Traceback" not in running.log


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def another_cascade(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["cascade"]["stages"][0]["depth"] += 1
    path.write_text(json.dumps(manifest))


def no_calibration(folder: Path) -> None:
    (folder / "calibration.json").unlink()


def no_weights(folder: Path) -> None:
    shutil.rmtree(folder)


def one_line(printed: str) -> str:
    (line,) = printed.splitlines()
    assert line.startswith("msmlp: ")
    return line


def test_a_corrupted_weights_file_is_one_clear_line(tiny_weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    flip_a_byte(folder)
    done = run_msmlp("serve", "--weights", folder, "--port", "0", "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "model.safetensors is damaged" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "model.safetensors is damaged"),
        (another_cascade, "manifest.json: "),
        (no_calibration, "run msmlp calibrate"),
        (no_weights, "there is no weights folder"),
    ],
)
def test_weights_that_cannot_be_served_are_one_clear_line(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    tiny_weights: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    damage(folder)
    assert call("serve", "--weights", folder, "--port", "0", "--device", "cpu") == 2
    assert said in one_line(capsys.readouterr().err)


def test_a_port_in_use_is_one_clear_line(tiny_weights: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_msmlp("serve", "--weights", tiny_weights, "--port", str(port), "--device", "cpu")
    assert done.returncode == 2
    *logged, said = done.stderr.splitlines()
    assert said.startswith(f"msmlp: --port: cannot listen on 127.0.0.1:{port}: the address is in use")
    assert all(" INFO " in line for line in logged)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (
            ["--policy", "best"],
            {},
            "--policy: 'best' is not an operating point; expected one of fast, balanced, accurate",
        ),
        (["--dtype", "int4"], {}, "'--dtype': "),
        (["--max-batch", "0"], {}, "'--max-batch': "),
        (["--frontends", "0"], {}, "--frontends: expected auto or a whole number of at least 1"),
        ([], {"MSMLP_FRONTENDS": "many"}, "MSMLP_FRONTENDS: expected auto or a whole number of at least 1"),
        ([], {"MSMLP_CAPACITY": "none"}, "MSMLP_CAPACITY: "),
        ([], {"MSMLP_PROT": "9000"}, "MSMLP_PROT: no such setting"),
        pytest.param(
            ["--device", "cuda"],
            {},
            "cuda is not available here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_weights: Path,
    options: list[str],
    environment: dict[str, str],
    said: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert call("serve", "--weights", tiny_weights, "--port", "0", *options) == 2
    assert said in one_line(capsys.readouterr().err)
