"""One container of the image, with buildah: for machines where no Docker engine runs.

Nothing is pulled: Debian's own python on a base made with debootstrap stands for the official Python image. In the
chroot isolation a container has the machine's network, so the service listens on the port itself.
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

BASE = "localhost/msmlp-base:bookworm"
DEBOOTSTRAP = ("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
CHROOT = ("--isolation", "chroot")
STAGES = {"packages": "-packages", "wheel": "-wheel", "service": ""}
"""The Dockerfile's stages, and how the tags of their images end: a tag keeps what the next build can use again, and no
more than that."""

READ_ONLY = """
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t tmpfs -o mode=755 tmpfs "$0/run"
exec "$@"
"""
"""Runs a command that sees the folder $0 read-only; but buildah keeps a file of its own in its /run."""


class Buildah:
    """Builds the image; runs one container of it, on a read-only root file system."""

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
        if not _id(BASE):
            _make_base()
        with tempfile.TemporaryDirectory() as scratch:
            volumes = flags("--volume", pip_volumes(Path(scratch)))
            given = flags("--build-arg", [f"BASE={BASE}", *arguments])
            for stage, ending in STAGES.items():
                kept = ("--layers", "--format", "docker", "--pull=never", "--target", stage, "--tag", image + ending)
                before = _id(image + ending)
                call("buildah", "build", *CHROOT, *kept, *given, *volumes, ".")
                if before and before != _id(image + ending):
                    succeeds("buildah", "rmi", before)

    def inspect(self, image: str) -> tuple[int, dict[str, Any]]:
        """The bytes of the image's layers, and its configuration."""
        found = json.loads(output("buildah", "inspect", "--type", "image", image))
        self._entrypoint = found["Docker"]["config"]["Entrypoint"]
        return sum(layer["size"] for layer in json.loads(found["Manifest"])["layers"]), found["Docker"]["config"]

    def create(self, image: str) -> None:
        """A container of the image, not yet running."""
        self._container = output("buildah", "from", "--pull=never", image)
        self._root = output("buildah", "mount", self._container)

    def start(self, port: int, log: IO[bytes], weights: Path | None) -> subprocess.Popen[bytes]:
        """The image's entrypoint, reached at 127.0.0.1:`port`; the process ends with its status."""
        self._options = [*CHROOT, "--env", f"MSMLP_PORT={port}"]
        options = list(self._options)
        if weights:
            Path(self._root, "weights").mkdir()  # as an engine does before the root file system is read-only
            options += ["--volume", f"{weights.resolve()}:/weights:ro", "--env", "MSMLP_WEIGHTS=/weights"]
        read_only = ["unshare", "--mount", "sh", "-ec", READ_ONLY, self._root]
        command = [*read_only, "buildah", "run", *options, self._container, "--", *self._entrypoint]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return self._process

    def proc(self, file: str) -> str:
        """The service's own /proc/self/`file`."""
        return Path(f"/proc/{self._service()}/{file}").read_text()

    def inside(self, command: list[str]) -> str:
        """What a command prints in the container; CalledProcessError when it fails."""
        return output("buildah", "run", *self._options, self._container, "--", *command)

    def terminate(self) -> None:
        """Send SIGTERM to the service."""
        os.kill(self._service(), signal.SIGTERM)

    def remove(self) -> None:
        """End and remove the container; the image stays."""
        if self._process and self._process.poll() is None:
            for pid in _family(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        if self._container:
            succeeds("buildah", "rm", self._container)
        self._container, self._process = "", None

    def _service(self) -> int:
        """The first Python of the processes that buildah starts one in the other."""
        assert self._process
        return next(
            pid for pid in _family(self._process.pid) if Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
        )


def _family(pid: int) -> list[int]:
    """A process and those below it, parents first."""
    children = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [pid, *(member for child in children for member in _family(int(child)))]


def _id(tag: str) -> str:
    """Of the image with that tag; nothing where there is none."""
    return output("buildah", "images", "--quiet", "--no-trunc", "--filter", f"reference={tag}")


def _make_base() -> None:
    """Debian with its python as an image; takes minutes, once a machine."""
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
