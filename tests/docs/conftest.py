"""A server with the shipped weights, and a shell for the commands of the pages."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.docs.test_readme import ROOT
from tests.servers import serving


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The shipped weights, served; small batches are enough here and soon warm."""
    with serving(build_service(Settings(device="cpu", engine="thread", max_batch=2))) as client:
        yield f"{client.base_url.host}:{client.base_url.port}"


@pytest.fixture
def run(address: str, tmp_path: Path) -> Callable[[str], str]:
    """Runs a block in a folder that looks like the clone; what it prints."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")

    def shell(block: str) -> str:
        done = subprocess.run(
            ["sh", "-euc", block.replace("localhost:8000", address)],
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return shell
