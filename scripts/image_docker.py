"""One container of the image, with Docker's engine."""

import json
import os
import shutil
import subprocess
from typing import IO, Any

from scripts.commands import call, flags, output, succeeds

INSIDE = 8000
"""The port the service listens on in the container."""


class Docker:
    """Builds the image; runs one container of it, on a read-only root file system and without capabilities."""

    name = "docker"

    def __init__(self) -> None:
        self._container = f"msmlp-image-test-{os.getpid()}"

    @staticmethod
    def usable() -> bool:
        """Whether an engine answers."""
        return bool(shutil.which("docker")) and succeeds("docker", "info")

    def build(self, image: str, arguments: list[str]) -> None:
        """Build this folder's Dockerfile with build arguments NAME=VALUE."""
        call("docker", "build", *flags("--build-arg", arguments), "--tag", image, ".")

    def create(self, image: str) -> tuple[int, dict[str, Any]]:
        """Choose the image to start → its bytes and its configuration."""
        self._image = image
        (found,) = json.loads(output("docker", "image", "inspect", image))
        return found["Size"], found["Config"]

    def start(self, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """The image's entrypoint, reached at 127.0.0.1:`port`; the process ends with its status."""
        limits = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        gpus = ["--gpus", "all"] if self._image.endswith(":gpu") else []
        where = ["--name", self._container, "--publish", f"127.0.0.1:{port}:{INSIDE}"]
        return subprocess.Popen(["docker", "run", *limits, *gpus, *where, self._image], stdout=log, stderr=log)

    def proc(self, file: str) -> str:
        """The service's own /proc/self/`file`."""
        return output("docker", "exec", self._container, "cat", f"/proc/1/{file}")

    def inside(self, command: list[str]) -> None:
        """Run a command in the container; CalledProcessError when it fails."""
        call("docker", "exec", self._container, *command)

    def terminate(self) -> None:
        """Send SIGTERM to the service."""
        output("docker", "kill", "--signal", "TERM", self._container)

    def remove(self) -> None:
        """End and remove the container; the image stays."""
        succeeds("docker", "rm", "--force", self._container)
