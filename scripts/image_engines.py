"""What builds the image and runs one container of it: Docker, or buildah where no Docker engine runs.

With buildah nothing is pulled: a base made with debootstrap, with Debian's own Python, stands for the official Python
image. In its chroot isolation a container has the machine's network, so the service listens on the port itself.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

from scripts.commands import call, flags, output, succeeds
from scripts.pip_settings import pip_volumes

DOCKER_PORT = 8000
"""The port the service listens on in a Docker container."""

BASE = "localhost/msmlp-base:bookworm"
DEBOOTSTRAP = ("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
CHROOT = ("--isolation", "chroot")
STAGES = {"packages": "-packages", "wheel": "-wheel", "service": ""}
"""The Dockerfile's stages, each with the suffix of its image's tag. Tags keep what the next build can reuse, nothing
more."""

READ_ONLY = """
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t tmpfs -o mode=755 tmpfs "$0/run"
exec "$@"
"""
"""Runs a command that sees the folder $0 read-only, except /run, where buildah keeps its own file."""


class Docker:
    """Runs the container on a read-only root file system and without capabilities."""

    name = "docker"

    def __init__(self) -> None:
        self._container = f"msmlp-image-test-{os.getpid()}"

    @staticmethod
    def usable() -> bool:
        return bool(shutil.which("docker")) and succeeds("docker", "info")

    def build(self, image: str, arguments: list[str]) -> None:
        """Build this folder's Dockerfile with build arguments NAME=VALUE."""
        call("docker", "build", *flags("--build-arg", arguments), "--tag", image, ".")

    def inspect(self, image: str) -> tuple[int, dict[str, Any]]:
        """The bytes of the image's layers, and its configuration."""
        # The size that `docker image inspect` reports may be compressed.
        sizes = output("docker", "history", "--human=false", "--format", "{{.Size}}", image).split()
        (found,) = json.loads(output("docker", "image", "inspect", image))
        return sum(map(int, sizes)), found["Config"]

    def start(self, image: str, port: int, log: IO[bytes], weights: Path | None) -> "subprocess.Popen[bytes]":
        """The image's entrypoint at 127.0.0.1:`port`; the process ends with its status."""
        options = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--name", self._container, "--publish", f"127.0.0.1:{port}:{DOCKER_PORT}"]
        if image.endswith(":gpu") and shutil.which("nvidia-smi"):
            options += ["--gpus", "all"]
        if weights:
            options += ["--volume", f"{weights.resolve()}:/weights:ro", "--env", "MSMLP_WEIGHTS=/weights"]
        return subprocess.Popen(["docker", "run", *options, image], stdout=log, stderr=log)

    def proc(self, file: str) -> str:
        """The service's own /proc/self/`file`."""
        return output("docker", "exec", self._container, "cat", f"/proc/1/{file}")

    def inside(self, command: list[str]) -> str:
        """What a command prints in the container; CalledProcessError when it fails."""
        return output("docker", "exec", self._container, *command)

    def terminate(self) -> None:
        output("docker", "kill", "--signal", "TERM", self._container)

    def remove(self) -> None:
        succeeds("docker", "rm", "--force", self._container)


class Buildah:
    """Runs the container on a read-only root file system."""

    name = "buildah"

    def __init__(self) -> None:
        self._container = ""
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def usable() -> bool:
        """Whether the tools are here and we may use them."""
        return all(map(shutil.which, ("buildah", "debootstrap", "unshare"))) and os.geteuid() == 0

    def build(self, image: str, arguments: list[str]) -> None:
        """Build this folder's Dockerfile with build arguments NAME=VALUE; the base too, the first time."""
        if not _image_id(BASE):
            _make_base()
        with tempfile.TemporaryDirectory() as scratch:
            volumes = flags("--volume", pip_volumes(Path(scratch)))
            given = flags("--build-arg", [f"BASE={BASE}", *arguments])
            for stage, ending in STAGES.items():
                kept = ("--layers", "--format", "docker", "--pull=never", "--target", stage, "--tag", image + ending)
                before = _image_id(image + ending)
                call("buildah", "build", *CHROOT, *kept, *given, *volumes, ".")
                if before and before != _image_id(image + ending):
                    succeeds("buildah", "rmi", before)

    def inspect(self, image: str) -> tuple[int, dict[str, Any]]:
        found = json.loads(output("buildah", "inspect", "--type", "image", image))
        self._entrypoint = found["Docker"]["config"]["Entrypoint"]
        return sum(layer["size"] for layer in json.loads(found["Manifest"])["layers"]), found["Docker"]["config"]

    def start(self, image: str, port: int, log: IO[bytes], weights: Path | None) -> "subprocess.Popen[bytes]":
        self._container = output("buildah", "from", "--pull=never", image)
        root = output("buildah", "mount", self._container)
        self._options = [*CHROOT, "--env", f"MSMLP_PORT={port}"]
        options = list(self._options)
        if weights:
            Path(root, "weights").mkdir()  # as an engine does before the root file system is read-only
            options += ["--volume", f"{weights.resolve()}:/weights:ro", "--env", "MSMLP_WEIGHTS=/weights"]
        read_only = ["unshare", "--mount", "sh", "-ec", READ_ONLY, root]
        command = [*read_only, "buildah", "run", *options, self._container, "--", *self._entrypoint]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return self._process

    def proc(self, file: str) -> str:
        return Path(f"/proc/{self._service()}/{file}").read_text()

    def inside(self, command: list[str]) -> str:
        return output("buildah", "run", *self._options, self._container, "--", *command)

    def terminate(self) -> None:
        os.kill(self._service(), signal.SIGTERM)

    def remove(self) -> None:
        if self._process and self._process.poll() is None:
            for pid in _descendants(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        if self._container:
            succeeds("buildah", "rm", self._container)
        self._container, self._process = "", None

    def _service(self) -> int:
        """buildah starts several processes, each the parent of the next; the service is the first Python."""
        assert self._process
        pids = _descendants(self._process.pid)
        return next(pid for pid in pids if Path(f"/proc/{pid}/exe").readlink().name.startswith("python"))


def _descendants(pid: int) -> list[int]:
    """A process and those below it, parents first."""
    children = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [pid, *(below for child in children for below in _descendants(int(child)))]


def _image_id(tag: str) -> str:
    """Empty if no image has that tag."""
    return output("buildah", "images", "--quiet", "--no-trunc", "--filter", f"reference={tag}")


def _make_base() -> None:
    """Build the base image, Debian with its Python: takes minutes, once per machine."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        call(*DEBOOTSTRAP, str(root))
        for leftover in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / leftover)
        container = output("buildah", "from", "scratch")
        try:
            output("buildah", "add", container, str(root), "/")
            output("buildah", "commit", container, BASE)
        finally:
            output("buildah", "rm", container)
