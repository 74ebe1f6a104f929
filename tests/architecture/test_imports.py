"""Imports run downward, and each half of the product works without the other's packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_without(missing: tuple[str, ...], program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that cannot import `missing`."""
    block = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
    return subprocess.run([sys.executable, "-c", block + program], capture_output=True, text=True, check=False)


def test_the_import_contracts_hold() -> None:
    # The console script lint-imports, without relying on PATH.
    program = (
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("missing", "program"),
    [
        # Offline commands need no web packages.
        (
            ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic_settings"),
            "sys.argv = ['msmlp', 'info', '--preset', 'tiny', '--json']; from msmlp.main import main; main()",
        ),
        # What a service knows of a model needs no torch.
        (
            ("torch",),
            "import msmlp.service.service, msmlp.model.weights, msmlp.model.preprocess; print('exits')",
        ),
        # Serving over HTTP needs no gRPC.
        (("grpc", "google.protobuf"), "import msmlp.service.http.server; print('exits')"),
        # Serving needs nothing that only training needs.
        (
            ("kornia", "matplotlib", "tqdm"),
            "import msmlp.service.http.server, msmlp.model.backends.torch.backend; print('exits')",
        ),
    ],
)
def test_it_works_without(missing: tuple[str, ...], program: str) -> None:
    done = run_without(missing, program)
    assert done.returncode == 0, done.stderr
    assert "exits" in done.stdout


def test_a_missing_package_is_really_missing_there() -> None:
    assert run_without(("fastapi",), "import fastapi").returncode != 0
