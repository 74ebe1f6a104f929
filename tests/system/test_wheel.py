"""What a wheel holds besides the code."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


def test_a_wheel_has_the_messages_of_grpc_and_the_playground(tmp_path: Path) -> None:
    # From a copy: building leaves files behind, and what lies here is not to be taken for built.
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for file in files:
        if file.startswith(("model/", "service/", "msmlp/")) or "/" not in file:
            (tmp_path / "source" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / file).write_bytes((ROOT / file).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        tmp_path,
        tmp_path / "source",
    ]
    subprocess.run(command, check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"service/grpc/inference.binpb", "service/grpc/messages.py", "service/ui/index.html"} <= set(names)
