"""A machine without a GPU serves without torch: `make serve` into an environment of its own."""

import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import make_serve

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


def test_serving_a_cpu_installs_no_torch(tmp_path: Path) -> None:
    with make_serve("EXTRA=cpu", f"VENV={tmp_path}/venv") as client:
        picture = (ROOT / "examples" / "cat.jpg").read_bytes()
        answer = client.post("/classify", content=picture, headers={"Content-Type": "image/jpeg"})
        metrics = client.get("/metrics").text
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["label"] == "cat"
    assert 'backend="onnx"' in metrics
    listed = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    installed = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert "onnxruntime" in installed
    assert not installed & {"torch", "onnx", "triton", "nvidia-cuda-runtime"}
