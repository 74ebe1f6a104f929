"""The verbs of the Makefile, without running them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def dry_run(*arguments: str) -> str:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "verb",
    ["serve", "test", "test-system", "test-gpu", "test-ray", "check", "fix", "bench", "image-test", "chaos", "docs"],
)
def test_make_has_the_contracts_verbs(verb: str) -> None:
    assert dry_run(verb, "EXTRA=cpu")


def test_without_a_gpu_test_gpu_fails_with_one_line(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    # nvidia-smi is not on this path, wherever the test runs.
    done = subprocess.run([make, "test-gpu"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first == "make test-gpu: needs a GPU, and nvidia-smi finds none"
    assert all(line.startswith("make") and "Error" in line for line in rest)
    assert not done.stdout


@pytest.mark.parametrize(("extra", "device"), [("gpu", "MSMLP_DEVICE=${MSMLP_DEVICE:-cuda} "), ("cpu", "")])
def test_the_builds_for_gpus_serve_from_a_gpu_or_not_at_all(tmp_path: Path, extra: str, device: str) -> None:
    said = dry_run("serve", f"EXTRA={extra}", f"VENV={tmp_path}/venv").splitlines()
    assert f"{device}{tmp_path}/venv/bin/msmlp serve --port 8000" in [line.rstrip() for line in said]


def test_port_and_arguments_reach_the_server(tmp_path: Path) -> None:
    said = dry_run("serve", "EXTRA=cpu", f"VENV={tmp_path}/venv", "PORT=9000", "ARGS=--log-level debug")
    assert "msmlp serve --port 9000 --log-level debug" in said


@pytest.mark.parametrize(("extra", "other"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_one_build_is_installed_and_extra_decides_which(tmp_path: Path, extra: str, other: str) -> None:
    said = dry_run("serve", f"EXTRA={extra}", f"VENV={tmp_path}/venv")
    assert f"scripts/install.sh {extra} serve" in said
    assert f"install.sh {other}" not in said
