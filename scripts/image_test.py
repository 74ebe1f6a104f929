"""`make image-test`: builds the container, starts it with a read-only root file system, and calls it."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from scripts.commands import output
from scripts.image_buildah import Buildah
from scripts.image_docker import Docker

NO_TOOL = "needs Docker with a running engine; or, as root on Debian: apt-get install buildah debootstrap"
WEIGHTS = Path("weights/cifar10-s")
BACKENDS = {"cpu": ("onnx",), "gpu": ("torch", "onnx")}
READY_WITHIN, END_WITHIN = 120, 30
"""Seconds."""

MOST_BYTES = 500_000_000
"""Of the CPU image."""


class ImageTestError(Exception):
    """The image is not as it should be."""


def expect(holds: bool, otherwise: str) -> None:
    """ImageTestError unless it holds."""
    if not holds:
        raise ImageTestError(otherwise)


def main(extra: str) -> int:
    """Test the image of `extra`, cpu or gpu → the exit status."""
    if extra not in BACKENDS:
        _say(f"EXTRA is cpu or gpu, not {extra}")
        return 2
    engine = Docker() if Docker.usable() else Buildah() if Buildah.usable() else None
    if not engine:
        _say(NO_TOOL)
        return 2
    image = f"localhost/msmlp:{extra}"
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, lambda *_: sys.exit(1))  # on its way out the container is removed
    try:
        engine.build(image, [f"EXTRA={extra}", f"REVISION={output('git', 'rev-parse', 'HEAD')}"])
        size, config = engine.create(image)
        if extra == "cpu":
            expect(size < MOST_BYTES, f"the image has {size} bytes, at most {MOST_BYTES} are allowed")
        seconds = _run(engine, config["Healthcheck"]["Test"][1:], BACKENDS[extra])
    except (ImageTestError, subprocess.CalledProcessError) as error:
        _say(str(error))
        return 1
    finally:
        engine.remove()
    _say(f"{image} with {engine.name}: {size / 1e6:.0f} MB, ready {seconds:.1f} s after the start")
    return 0


def _run(engine: Docker | Buildah, health_check: list[str], backends: tuple[str, ...]) -> float:
    """Start, call and end a container → seconds from its start until it was ready."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        try:
            begun = time.monotonic()
            process = engine.start(port, log)
            _wait_until_ready(url, process)
            seconds = time.monotonic() - begun
            _check_answers(url, backends)
            _check_isolation(engine)
            engine.inside(health_check)
            engine.terminate()
            expect(process.wait(END_WITHIN) == 0, f"SIGTERM ended it with status {process.returncode}, not 0")
            # What could not be written would be complained about.
            odd = [line for line in _lines(log) if " INFO " not in line]
            expect(not odd, f"its log holds more than INFO, first {odd[:1]}")
        except (ImageTestError, OSError, subprocess.SubprocessError) as error:
            sys.stderr.writelines(f"{line}\n" for line in _lines(log))
            raise ImageTestError(str(error)) from None
    return seconds


def _check_answers(url: str, backends: tuple[str, ...]) -> None:
    """A photograph is classified, a file that is none is refused, and the right backend did it."""
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    status, text = _http(f"{url}/classify", Path("examples/cat.jpg").read_bytes())
    expect(status == 200, f"a photograph was answered with {status}: {text}")
    answer = json.loads(text)
    (result,) = answer["results"]
    expect(answer["model"]["name"] == manifest["name"], f"the model is {answer['model']}")
    expect(result["label"] == result["top_k"][0]["label"], f"label and top_k differ: {result}")
    expect(result["label"] == manifest["classes"][result["class_id"]], f"label and class_id differ: {result}")
    expect(1 <= result["exit"] <= result["exits"] == len(manifest["cascade"]["stages"]), f"wrong exit: {result}")
    status, text = _http(f"{url}/classify", Path("LICENSE").read_bytes())
    expect(status == 422, f"a file that is no image was answered with {status}: {text}")
    metrics = _http(f"{url}/metrics")[1]
    expect(any(f'backend="{name}"' in metrics for name in backends), f"the backend is not {' or '.join(backends)}")


def _check_isolation(engine: Docker | Buildah) -> None:
    """The service is not root, has no capabilities, and its root file system is read-only."""
    status = dict(line.split(":\t", 1) for line in engine.proc("status").splitlines())
    expect("0" not in status["Uid"].split(), f"it runs as root: Uid {status['Uid']}")
    expect(int(status["CapEff"], 16) == 0, f"it has capabilities: {status['CapEff']}")
    mounts = [line.split() for line in engine.proc("mountinfo").splitlines()]
    (options,) = [mount[5].split(",") for mount in mounts if mount[4] == "/"]
    expect("ro" in options, f"its root file system can be written: {options}")


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_WITHIN
    while time.monotonic() < end:
        expect(process.poll() is None, f"the container ended with status {process.returncode}")
        with contextlib.suppress(OSError):
            if _http(f"{url}/readyz")[0] == 200:
                return
        time.sleep(0.05)
    raise ImageTestError(f"not ready after {READY_WITHIN} s")


def _http(url: str, body: bytes | None = None) -> tuple[int, str]:
    """GET, or POST with a body → status and text."""
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


def _say(text: str) -> None:
    sys.stderr.write(f"image-test: {text}\n")


def _lines(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return log.read().decode(errors="replace").splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
