"""`msmlp doctor`: what it says of this machine, and what it calls broken."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from msmlp import doctor
from msmlp.doctor import examine
from msmlp.model.weights import load_calibration, load_weights, model_version
from tests.processes import run_msmlp


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any free port, and nothing else of ours."""
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MSMLP_PORT", "0")
    monkeypatch.setenv("MSMLP_DEVICE", "cpu")


def look(weights: Path | None) -> dict[str, Any]:
    """Facts by section, and all problems in one text."""
    sections = examine(weights)
    facts = {section.name: section.facts for section in sections}
    return {**facts, "problems": "\n".join(problem for section in sections for problem in section.problems)}


def test_a_machine_that_can_serve(tiny_weights: Path) -> None:
    done = run_msmlp("doctor", "--weights", tiny_weights, "--json", MSMLP_PORT="0", MSMLP_DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["problems"] == []
    assert document["torch"]["version"] == torch.__version__
    assert document["machine"]["cores"] >= 1
    weights = load_weights(tiny_weights)
    assert document["weights"]["version"] == model_version(weights, load_calibration(weights))
    assert document["weights"]["calibrated_on"]["images"] == 40
    choice = document["choice"]
    assert (choice["backend"], choice["device"], choice["dtype"]) == ("onnx", "cpu", "float32")
    assert choice["why"]["backend"] == "the float32 graphs match, on a CPU"
    assert choice["why"]["device"] == "set to cpu"
    assert choice["why"]["dtype"] == "half precision on a GPU, float32 on a CPU"
    assert document["processes"]["engine"] == "inline"
    assert document["processes"]["frontends"] >= 1
    given = {"MSMLP_PORT": "0", "MSMLP_DEVICE": "cpu", "MSMLP_DRAIN_SECONDS": "0"}
    assert document["settings"] == given
    assert {"fastapi", "uvicorn", "pydantic-settings"} <= document["packages"]["serve"].keys()
    assert "kornia" in document["packages"]["train"]


def test_the_table_ends_with_the_verdict(tiny_weights: Path, tmp_path: Path) -> None:
    fine = run_msmlp("doctor", "--weights", tiny_weights, MSMLP_PORT="0", MSMLP_DEVICE="cpu")
    assert fine.returncode == 0
    assert "weights   tiny-digits, version " in fine.stdout
    assert "choice    onnx on cpu, float32: the float32 graphs match and device set to cpu" in fine.stdout
    assert re.search(r"^processes \d+ front ends?, an engine inside", fine.stdout, re.MULTILINE)
    assert fine.stdout.splitlines()[-1] == "ready to serve"
    broken = run_msmlp("doctor", "--weights", tmp_path, MSMLP_PORT="0")
    assert broken.returncode == 1
    assert broken.stdout.splitlines()[-1].startswith("problem: ")
    assert fine.stderr == broken.stderr == ""


def test_damaged_weights_are_a_problem(tiny_weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    (folder / "calibration.json").unlink()
    assert "is not calibrated; run msmlp calibrate" in look(folder)["problems"]
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    found = look(folder)
    assert "model.safetensors is damaged: sha256" in found["problems"]
    assert found["weights"] is None


def test_a_taken_port_is_a_problem(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("MSMLP_PORT", str(port))
        found = look(tiny_weights)
    assert found["port"] == {"host": "127.0.0.1", "port": port, "free": False}
    assert f"cannot listen on 127.0.0.1:{port}" in found["problems"]
    assert look(tiny_weights)["problems"] == ""


def test_grpc_is_looked_at_where_it_is_wanted(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "grpc" not in look(tiny_weights)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("MSMLP_GRPC_PORT", str(port))
        found = look(tiny_weights)
    assert found["grpc"] == {"host": "127.0.0.1", "grpc_port": port, "free": False}
    assert "set another --grpc-port or MSMLP_GRPC_PORT" in found["problems"]
    assert look(tiny_weights)["problems"] == ""
    monkeypatch.setitem(sys.modules, "msmlp.service.grpc.server", None)
    assert "--grpc-port: needs the package" in look(tiny_weights)["problems"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MSMLP_PROT", "9000", "MSMLP_PROT: no such setting"),
        ("MSMLP_MAX_BATCH", "many", "MSMLP_MAX_BATCH: "),
        ("MSMLP_POLICY", "frugal", "'frugal' is not an operating point"),
    ],
)
def test_a_wrong_setting_in_the_environment_is_a_problem(
    name: str, value: str, said: str, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    found = look(tiny_weights)
    assert said in found["problems"]
    assert found["settings"][name] == value


def test_a_gpu_that_is_asked_for_and_not_there_is_a_problem(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSMLP_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cuda is not available here" in look(tiny_weights)["problems"]


def test_a_missing_serving_package_is_a_problem(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.metadata.version

    def version(package: str) -> str:
        if package == "uvicorn":
            raise doctor.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = look(tiny_weights)
    assert found["packages"]["serve"]["uvicorn"] is None
    assert found["problems"].startswith('serving needs uvicorn: pip install "msmlp[serve]"')


def test_without_torch_it_says_so_and_looks_at_the_rest(weights_without_graphs: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
sys.argv = ["msmlp", "doctor", "--weights", {str(weights_without_graphs)!r}, "--json"]
from msmlp.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["torch"] is None
    assert document["weights"]["name"] == "tiny-digits"
    [problem] = document["problems"]
    assert "msmlp export" in problem, "ONNX Runtime could serve, had these weights their graphs"


@pytest.fixture
def for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builds for GPUs are installed."""
    real = doctor.metadata.version
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: "2.13.0" if name in ("torch", "onnxruntime-gpu") else real(name)
    )


def driver_says(nvidia_smi: Path, version: str) -> None:
    (nvidia_smi / "answer").write_text(f"{version}\n")


def test_a_driver_too_old_for_cuda_13_is_a_problem(
    tiny_weights: Path, nvidia_smi: Path, for_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MSMLP_DEVICE")
    driver_says(nvidia_smi, "570.86.15")
    found = look(tiny_weights)
    assert found["driver"] == "570.86.15"
    said = "NVIDIA's driver 570.86.15 is too old, CUDA 13 needs 580 or newer: update it, or serve with --device cpu"
    assert found["problems"] == said
    driver_says(nvidia_smi, "580.65.06")
    found = look(tiny_weights)
    assert (found["driver"], found["problems"]) == ("580.65.06", "")


@pytest.mark.parametrize("why", ["the CPU is asked for", "the builds are for CPUs", "torch sees the GPU all the same"])
def test_an_old_driver_that_nothing_needs_newer_is_no_problem(
    why: str, tiny_weights: Path, nvidia_smi: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why != "the builds are for CPUs":
        request.getfixturevalue("for_gpus")
    if why != "the CPU is asked for":
        monkeypatch.delenv("MSMLP_DEVICE")
    if why == "torch sees the GPU all the same":
        monkeypatch.setattr(doctor, "_torch_sees_a_gpu", lambda: True)
    driver_says(nvidia_smi, "570.86.15")
    found = look(tiny_weights)
    assert (found["driver"], found["problems"]) == ("570.86.15", "")


def test_a_machine_without_a_driver_is_said(tiny_weights: Path, nvidia_smi: Path) -> None:
    [section] = [section for section in examine(tiny_weights) if section.name == "driver"]
    assert (section.line, section.facts, section.problems) == ("none that nvidia-smi finds", None, [])
