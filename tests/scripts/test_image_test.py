"""`make image-test` where it cannot run, and the versions it builds with; what it tests, it tests itself."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def image_test(extra: str, path: Path) -> tuple[int, list[str]]:
    """Its exit status and what it says, where only the programs in `path` are there."""
    command = [sys.executable, "-m", "scripts.image_test", extra]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(path)}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()


def test_without_tools_one_line_says_what_to_install(tmp_path: Path) -> None:
    status, (line,) = image_test("cpu", tmp_path)
    assert status == 2
    assert "apt-get install buildah debootstrap" in line


def test_docker_without_an_engine_is_no_tool(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    assert image_test("cpu", tmp_path)[0] == 2


def test_another_build_than_cpu_and_gpu_is_refused(tmp_path: Path) -> None:
    assert image_test("tpu", tmp_path) == (2, ["image-test: EXTRA is cpu or gpu, not tpu"])


@pytest.mark.parametrize("extra", ["cpu", "serve"])
def test_the_pinned_versions_are_ones_the_project_allows(extra: str) -> None:
    lines = (ROOT / "docker" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in map(Requirement, (*project["dependencies"], *project["optional-dependencies"][extra])):
        assert wanted.name in pinned
        assert pinned[wanted.name] in wanted.specifier
