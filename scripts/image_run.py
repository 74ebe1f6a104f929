"""Starting a container of the image, and talking to it."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scripts.image_buildah import Buildah
from scripts.image_docker import Docker

READY_WITHIN = 120
"""Seconds."""


class ImageTestError(Exception):
    """The image is not as it should be."""


def expect(holds: bool, otherwise: str) -> None:
    """ImageTestError unless it holds."""
    if not holds:
        raise ImageTestError(otherwise)


@dataclass(frozen=True)
class Running:
    """A container that is ready."""

    engine: Docker | Buildah
    process: subprocess.Popen[bytes]
    port: int
    ready_seconds: float
    _log: IO[bytes]

    def call(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        """GET, or POST with a body → status and text."""
        return _http(f"http://127.0.0.1:{self.port}{path}", body)

    def post(self, path: str, body: bytes) -> Any:
        """POST → the JSON of the answer, whose status is 200."""
        status, text = self.call(path, body)
        expect(status == 200, f"POST {path} was answered with {status}: {text}")
        return json.loads(text)

    def log(self) -> list[str]:
        """What it has written, line by line."""
        return _lines(self._log)


@contextlib.contextmanager
def running(engine: Docker | Buildah, image: str, weights: Path | None = None) -> Iterator[Running]:
    """A container of the image, with its own weights or this folder's; its log is shown when anything goes wrong."""
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        try:
            engine.create(image)
            begun = time.monotonic()
            process = engine.start(port, log, weights)
            _wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
            yield Running(engine, process, port, time.monotonic() - begun, log)
        except (ImageTestError, OSError, subprocess.SubprocessError) as error:
            sys.stderr.writelines(f"{line}\n" for line in _lines(log))
            raise ImageTestError(str(error)) from None
        finally:
            engine.remove()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_WITHIN
    while time.monotonic() < end:
        expect(process.poll() is None, f"the container ended with status {process.returncode}")
        with contextlib.suppress(OSError):
            if _http(url)[0] == 200:
                return
        time.sleep(0.05)
    raise ImageTestError(f"not ready after {READY_WITHIN} s")


def _http(url: str, body: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _lines(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return log.read().decode(errors="replace").splitlines()
