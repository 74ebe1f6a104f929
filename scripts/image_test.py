"""`make image-test`: builds the container's image, starts it with a read-only root file system, and calls it."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scripts.commands import output
from scripts.image_engines import Buildah, Docker

NO_TOOL = "needs Docker with a running engine; or, as root on Debian: apt-get install buildah debootstrap"
WEIGHTS = Path("weights/cifar10-s")
MOUNTED = Path("weights/cifar100-s")
PHOTO = Path("examples/cat.jpg")
BACKENDS = {"cpu": ("onnx",), "gpu": ("torch", "onnx")}
LABELS = ("title", "description", "licenses", "version", "revision")

READY_WITHIN, ENDS_WITHIN = 120, 30
"""Seconds."""

MOST_BYTES, MOST_SECONDS = 500_000_000, 5
"""Limits for the CPU image: its size, and the time until it is ready."""

MOST_HIDDEN_BYTES = 5_000_000
"""Limit for files in one layer that another replaces or removes; the base image has some."""


class ImageTestError(Exception):
    """The image is not as it should be."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ImageTestError(otherwise)


def main(extra: str) -> int:
    """Test the image of `extra`, cpu or gpu → the exit status."""
    if extra not in BACKENDS:
        _say(f"EXTRA: expected cpu or gpu, got {extra}")
        return 2
    engine = Docker() if Docker.usable() else Buildah() if Buildah.usable() else None
    if not engine:
        _say(NO_TOOL)
        return 2
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, lambda *_: sys.exit(1))  # on its way out the container is removed
    try:
        _test(engine, f"localhost/msmlp:{extra}", extra)
    except (ImageTestError, subprocess.CalledProcessError) as error:
        _say(str(error))
        return 1
    return 0


def _test(engine: Docker | Buildah, image: str, extra: str) -> None:
    engine.build(image, [f"EXTRA={extra}", f"REVISION={output('git', 'rev-parse', 'HEAD')}"])
    layers, config = engine.inspect(image)
    _say(f"{image} with {engine.name}: {layers / 1e6:.0f} MB")
    _check_configuration(config, extra)
    with _running(engine, image) as first:
        _say(f"ready {first.ready_seconds:.1f} s after the start")
        _check_answers(first, extra)
        _check_isolation(first)
        _check_contents(first, extra, layers)
        engine.inside(config["Healthcheck"]["Test"][1:])
        _check_end(first)
    with _running(engine, image, MOUNTED) as second:
        _say(f"with mounted weights: {second.ready_seconds:.1f} s")
        wanted = json.loads((MOUNTED / "manifest.json").read_text())["name"]
        model = second.post("/classify", PHOTO.read_bytes())["model"]
        expect(model["name"] == wanted, f"with the weights of {wanted} mounted the model is {model}")
    if extra == "cpu":
        # The faster of two starts: the other may have waited for something else on this machine.
        seconds = min(first.ready_seconds, second.ready_seconds)
        expect(layers < MOST_BYTES, f"the image has {layers} bytes, at most {MOST_BYTES} are allowed")
        expect(seconds < MOST_SECONDS, f"ready after {seconds:.1f} s, at most {MOST_SECONDS} are allowed")


def _say(text: str) -> None:
    sys.stderr.write(f"image-test: {text}\n")


# --- a container ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    engine: Docker | Buildah
    process: "subprocess.Popen[bytes]"
    port: int
    ready_seconds: float
    _log: IO[bytes]

    def call(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        return _http(f"http://127.0.0.1:{self.port}{path}", body)

    def post(self, path: str, body: bytes) -> Any:
        """POST → the JSON of the answer, whose status is 200."""
        status, text = self.call(path, body)
        expect(status == 200, f"POST {path} was answered with {status}: {text}")
        return json.loads(text)

    def log(self) -> list[str]:
        return _lines(self._log)


@contextlib.contextmanager
def _running(engine: Docker | Buildah, image: str, weights: Path | None = None) -> Iterator[Running]:
    """A container with the image's weights or with this folder's; its log is shown if anything fails."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        try:
            process = engine.start(image, port, log, weights)
            begun = time.monotonic()
            _wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
            yield Running(engine, process, port, time.monotonic() - begun, log)
        except (ImageTestError, OSError, subprocess.SubprocessError) as error:
            sys.stderr.writelines(f"{line}\n" for line in _lines(log))
            raise ImageTestError(str(error)) from None
        finally:
            engine.remove()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
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


def _lines(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return log.read().decode(errors="replace").splitlines()


# --- what is checked --------------------------------------------------------------------------------------------------


def _check_configuration(config: dict[str, Any], extra: str) -> None:
    labels = {name: config["Labels"].get(f"org.opencontainers.image.{name}") for name in LABELS}
    expect(all(labels.values()), f"a label is missing: {labels}")
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    expect(labels["version"] == version, f"its label says version {labels['version']}, pyproject.toml {version}")
    expect(config["User"] == "10001:10001", f"its user is {config['User']}")
    expect(config.get("StopSignal") == "SIGTERM", f"its stop signal is {config.get('StopSignal')}")
    asked = [line for line in config["Env"] if line.startswith("NVIDIA_")]
    expect(bool(asked) == (extra == "gpu"), f"of NVIDIA's driver it asks for {asked}")


def _check_contents(running: Running, extra: str, layers: int) -> None:
    """Every package is pinned, no file is stored twice, torch only where it is needed, one CUDA for all."""
    contents = json.loads(running.engine.inside(["python", "-c", Path("scripts/image_contents.py").read_text()]))
    pinned = constraints()
    installed = {re.sub("[-_.]+", "-", name).lower(): version for name, version in contents["packages"].items()}
    loose = {name: version for name, version in installed.items() if name != "msmlp" and pinned.get(name) != version}
    expect(not loose, f"docker/constraints.txt does not pin {loose}")
    expect(("torch" in installed) == (extra == "gpu"), "torch must be in the GPU image, and only there")
    expect(not contents["doubles"], f"stored twice: {contents['doubles']}")
    hidden = layers - contents["bytes"]
    expect(hidden < MOST_HIDDEN_BYTES, f"{hidden} bytes of its layers are hidden by others")
    if extra == "gpu":
        majors = {str(version).split(".")[0] for version in contents["cuda"].values()}
        expect(len(majors) == 1, f"packages need different CUDA versions: {contents['cuda']}")
        # This needs no GPU; complaints go to stdout.
        complaint = running.engine.inside(["python", "-c", "import onnxruntime; onnxruntime.preload_dlls()"])
        expect(not complaint, f"ONNX Runtime cannot load the libraries of CUDA: {complaint}")


def constraints() -> dict[str, str]:
    lines = Path("docker/constraints.txt").read_text().splitlines()
    return dict(re.split("={2,3}", line) for line in lines if not line.startswith("#"))


def _check_answers(running: Running, extra: str) -> None:
    """A photograph is classified, another file is refused, and the right backend answered."""
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    answer = running.post("/classify", PHOTO.read_bytes())
    (result,) = answer["results"]
    expect(answer["model"]["name"] == manifest["name"], f"the model is {answer['model']}")
    expect(result["label"] == result["top_k"][0]["label"], f"label and top_k differ: {result}")
    expect(result["label"] == manifest["classes"][result["class_id"]], f"label and class_id differ: {result}")
    expect(1 <= result["exit"] <= result["exits"] == len(manifest["cascade"]["stages"]), f"wrong exit: {result}")
    status, text = running.call("/classify", Path("LICENSE").read_bytes())
    expect(status == 422, f"a file that is not an image was answered with {status}: {text}")
    metrics = running.call("/metrics")[1]
    names = BACKENDS[extra]
    expect(any(f'backend="{name}"' in metrics for name in names), f"the backend is not {' or '.join(names)}")


def _check_isolation(running: Running) -> None:
    """The service is not root, has no capabilities, and its root file system is read-only."""
    status = dict(line.split(":\t", 1) for line in running.engine.proc("status").splitlines())
    expect("0" not in status["Uid"].split(), f"it runs as root: Uid {status['Uid']}")
    expect(int(status["CapEff"], 16) == 0, f"it has capabilities: {status['CapEff']}")
    mounts = [line.split() for line in running.engine.proc("mountinfo").splitlines()]
    (options,) = [mount[5].split(",") for mount in mounts if mount[4] == "/"]
    expect("ro" in options, f"its root file system can be written: {options}")


def _check_end(running: Running) -> None:
    """A request in flight on SIGTERM is answered; then the service ends with status 0 and logs no error."""
    photo = PHOTO.read_bytes()
    head = (
        "POST /classify HTTP/1.1\r\nHost: image-test\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(photo)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", running.port), timeout=ENDS_WITHIN) as connection:
        connection.sendall(head.encode())
        # It asks for the body once the request is being answered.
        asked = connection.recv(1000)
        expect(asked.startswith(b"HTTP/1.1 100 "), f"the service does not ask for the body: {asked!r}")
        running.engine.terminate()
        end = time.monotonic() + ENDS_WITHIN
        while not any("shutting down" in line for line in running.log()):
            expect(time.monotonic() < end, "its log does not say: shutting down")
            time.sleep(0.05)
        connection.sendall(photo)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    expect(answer.startswith(b"HTTP/1.1 200 "), f"a request in flight on SIGTERM was answered with {answer[:80]!r}")
    expect(running.process.wait(ENDS_WITHIN) == 0, f"SIGTERM ended it with status {running.process.returncode}, not 0")
    # A file that it could not write would show here.
    odd = [line for line in running.log() if " INFO " not in line]
    expect(not odd, f"its log has lines above INFO, first {odd[:1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
