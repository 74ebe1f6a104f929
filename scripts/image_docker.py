"""One container of the image, with Docker's engine."""

import json
import os
import shutil
import subprocess
from pathlib import Path
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

    def inspect(self, image: str) -> tuple[int, dict[str, Any]]:
        """The bytes of the image's layers, and its configuration."""
        # What `docker image inspect` calls its size may be compressed.
        sizes = output("docker", "history", "--human=false", "--format", "{{.Size}}", image).split()
        (found,) = json.loads(output("docker", "image", "inspect", image))
        return sum(map(int, sizes)), found["Config"]

    def create(self, image: str) -> None:
        """Choose the image to start."""
        self._image = image

    def start(self, port: int, log: IO[bytes], weights: Path | None) -> subprocess.Popen[bytes]:
        """The image's entrypoint, reached at 127.0.0.1:`port`; the process ends with its status."""
        options = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--name", self._container, "--publish", f"127.0.0.1:{port}:{INSIDE}"]
        if self._image.endswith(":gpu") and shutil.which("nvidia-smi"):
            options += ["--gpus", "all"]
        if weights:
            options += ["--volume", f"{weights.resolve()}:/weights:ro", "--env", "MSMLP_WEIGHTS=/weights"]
        return subprocess.Popen(["docker", "run", *options, self._image], stdout=log, stderr=log)

    def proc(self, file: str) -> str:
        """The service's own /proc/self/`file`."""
        return output("docker", "exec", self._container, "cat", f"/proc/1/{file}")

    def inside(self, command: list[str]) -> str:
        """What a command prints in the container; CalledProcessError when it fails."""
        return output("docker", "exec", self._container, *command)

    def terminate(self) -> None:
        """Send SIGTERM to the service."""
        output("docker", "kill", "--signal", "TERM", self._container)

    def remove(self) -> None:
        """End and remove the container; the image stays."""
        succeeds("docker", "rm", "--force", self._container)
