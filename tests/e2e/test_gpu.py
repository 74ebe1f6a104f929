"""`msmlp serve` and `msmlp train` on a GPU, and without the GPU that was asked for; what can also runs on a CPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.fakes import PATIENCE_SECONDS
from tests.processes import Call, environment, msmlp_serve
from tests.servers import encoded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

UNUSABLE = """
from msmlp.model import platform
from msmlp.model.backends import select
platform.DEVICE_NODES = ("/dev/null",)
select._torch_has_gpus = lambda: True
from msmlp.main import main
main()
"""
"""`msmlp` on a machine that has a driver and the builds for GPUs, but where torch sees none."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "program"),
    [
        (("--device", "cuda"), UNUSABLE),
        (("--device", "cuda", "--engine", "thread"), UNUSABLE),
        (("--devices", "0,1"), UNUSABLE),
        (("--devices", "0"), "from msmlp.main import main; main()"),
    ],
    ids=["process", "thread", "two GPUs", "no driver"],
)
def test_a_host_without_the_gpu_it_was_asked_for_ends(
    options: tuple[str, ...], program: str, tiny_weights: Path
) -> None:
    command = [sys.executable, "-c", program, "serve", "--weights", str(tiny_weights), "--port", "0", *options]
    done = subprocess.run(
        [*command, "--backend", "torch"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode in (1, 2)
    assert "cuda is not available here" in done.stderr.splitlines()[-1]
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_service_answers_from_the_device_it_was_asked_for(
    device: str, backend: str, tiny_weights: Path, digits: Any
) -> None:
    pictures = [encoded(pixels) for pixels in digits.test[::5]]
    with msmlp_serve(tiny_weights, "--device", device, "--backend", backend, "--max-batch", "16") as served:
        served.wait_for(rf"ready: {backend} on {device}")
        files = [("images", picture) for picture in pictures]
        answer = httpx.post(f"{served.url}/classify?policy=accurate", files=files, timeout=PATIENCE_SECONDS)
        log = served.log
    labels = [result["label"] for result in answer.json()["results"]]
    right = [label == str(digit) for label, digit in zip(labels, digits.test_labels[::5], strict=True)]
    assert sum(right) > len(right) / 2
    assert "continuing without" not in log


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # the compiler warns of what it could do
@pytest.mark.parametrize("device", DEVICES)
def test_a_training_falls_back_to_nothing(
    device: str,
    digits_folder: Path,
    tmp_path: Path,
    call: Call,
    no_graphs: None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    size = ("--preset", "tiny", "--recipe", "quick", "--epochs", "2", "--batch-size", "60", "--set", "image_size=16")
    given, on = ("--data", digits_folder), ("--device", device)
    assert call("train", *given, "--out", tmp_path / "w", *on, *size) == 0
    assert call("evaluate", "--weights", tmp_path / "w", *given, *on) == 0
    assert f"images of {digits_folder}, torch on {device}" in capsys.readouterr().out
    assert not [line for line in caplog.messages if "continuing without" in line]
