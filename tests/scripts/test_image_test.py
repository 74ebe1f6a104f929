"""`make image-test` where it cannot run, and the versions it builds with; what it tests, it tests itself."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts.image_contents import doubles
from scripts.image_test import constraints

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "docker" / "constraints.txt"


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
    assert image_test("tpu", tmp_path) == (2, ["image-test: EXTRA: expected cpu or gpu, got tpu"])


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("extra", ["cpu", "gpu", "serve", "grpc", "telemetry"])
def test_the_pinned_versions_are_ones_the_project_allows(extra: str) -> None:
    pinned = constraints()
    project = PROJECT["project"]
    wanted = (*project["dependencies"], *project["optional-dependencies"][extra], *PROJECT["build-system"]["requires"])
    for each in map(Requirement, wanted):
        assert each.name in pinned
        assert pinned[each.name] in each.specifier


def test_torch_is_pinned_to_the_build_with_cuda() -> None:
    line = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch="))
    version = constraints()["torch"]
    assert Version(version) in Requirement(line).specifier
    assert Version(f"{version}+cpu") not in Requirement(line).specifier


def test_the_image_says_the_version_of_the_project() -> None:
    version = PROJECT["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in (ROOT / "Dockerfile").read_text()


def test_readme_and_page_start_it_with_the_same_commands() -> None:
    commands = re.findall(r"docker run .*", (ROOT / "README.md").read_text())
    assert len(commands) == 2
    page = (ROOT / "docs" / "container.md").read_text().splitlines()
    assert set(commands) <= set(page)


def test_what_lies_in_an_image_twice_is_found(tmp_path: Path) -> None:
    contents = {
        "a/libcudart.so.12": "old",
        "b/libcudart.so.13": "new",
        "c/libcupti.so": "same",
        "c/libcupti_static.a": "static",
        "d/copy": "same",
        "d/libcu.so": "one",
        "d/libcufft.so.12": "two",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = doubles(tmp_path / name for name in contents)
    assert [[str(Path(path).relative_to(tmp_path)) for path in group] for group in found] == [
        ["a/libcudart.so.12", "b/libcudart.so.13"],
        ["c/libcupti.so", "d/copy"],
        ["c/libcupti.so", "c/libcupti_static.a"],
    ]
