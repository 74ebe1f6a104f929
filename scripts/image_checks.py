"""What an image and a container of it must be like."""

import json
import re
import socket
import time
import tomllib
from pathlib import Path
from typing import Any

from scripts.image_run import Running, expect

WEIGHTS = Path("weights/cifar10-s")
MOUNTED = Path("weights/cifar100-s")
PHOTO = Path("examples/cat.jpg")
BACKENDS = {"cpu": ("onnx",), "gpu": ("torch", "onnx")}
LABELS = ("title", "description", "licenses", "version", "revision")
CAN_HIDE = 5_000_000
"""Bytes of layers that others may hide: so many the base may bring along."""

ENDS_WITHIN = 30
"""Seconds."""


def check_configuration(config: dict[str, Any]) -> None:
    """Labels, user, signal."""
    labels = {name: config["Labels"].get(f"org.opencontainers.image.{name}") for name in LABELS}
    expect(all(labels.values()), f"a label is missing: {labels}")
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    expect(labels["version"] == version, f"its label says version {labels['version']}, pyproject.toml {version}")
    expect(config["User"] == "10001:10001", f"its user is {config['User']}")
    expect(config.get("StopSignal") == "SIGTERM", f"its signal to stop is {config.get('StopSignal')}")


def check_contents(running: Running, extra: str, layers: int) -> None:
    """Every package is pinned, nothing is there twice, torch only where it is wanted, one CUDA for all."""
    contents = json.loads(running.engine.inside(["python", "-c", Path("scripts/image_contents.py").read_text()]))
    pinned = constraints()
    installed = {_normal(name): version for name, version in contents["packages"].items()}
    loose = {name: version for name, version in installed.items() if name != "msmlp" and pinned.get(name) != version}
    expect(not loose, f"docker/constraints.txt does not pin {loose}")
    expect(("torch" in installed) == (extra == "gpu"), "torch is in the GPU image only, and there it must be")
    expect(not contents["doubles"], f"in it twice: {contents['doubles']}")
    hidden = layers - contents["bytes"]
    expect(hidden < CAN_HIDE, f"{hidden} bytes of its layers are hidden by others")
    if extra == "gpu":
        _check_cuda(running, contents["cuda"])


def _check_cuda(running: Running, versions: dict[str, str | None]) -> None:
    majors = {str(version).split(".")[0] for version in versions.values()}
    expect(len(majors) == 1, f"not one CUDA for all: {versions}")
    # It needs no GPU for this, and complains on stdout.
    complaint = running.engine.inside(["python", "-c", "import onnxruntime; onnxruntime.preload_dlls()"])
    expect(not complaint, f"ONNX Runtime cannot load the libraries of CUDA: {complaint}")


def constraints() -> dict[str, str]:
    """The versions that docker/constraints.txt pins."""
    lines = Path("docker/constraints.txt").read_text().splitlines()
    return dict(re.split("={2,3}", line) for line in lines if not line.startswith("#"))


def check_answers(running: Running, extra: str) -> None:
    """A photograph is classified, a file that is none is refused, and the right backend did it."""
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    answer = running.post("/classify", PHOTO.read_bytes())
    (result,) = answer["results"]
    expect(answer["model"]["name"] == manifest["name"], f"the model is {answer['model']}")
    expect(result["label"] == result["top_k"][0]["label"], f"label and top_k differ: {result}")
    expect(result["label"] == manifest["classes"][result["class_id"]], f"label and class_id differ: {result}")
    expect(1 <= result["exit"] <= result["exits"] == len(manifest["cascade"]["stages"]), f"wrong exit: {result}")
    status, text = running.call("/classify", Path("LICENSE").read_bytes())
    expect(status == 422, f"a file that is no image was answered with {status}: {text}")
    metrics = running.call("/metrics")[1]
    names = BACKENDS[extra]
    expect(any(f'backend="{name}"' in metrics for name in names), f"the backend is not {' or '.join(names)}")


def check_isolation(running: Running) -> None:
    """The service is not root, has no capabilities, and its root file system is read-only."""
    status = dict(line.split(":\t", 1) for line in running.engine.proc("status").splitlines())
    expect("0" not in status["Uid"].split(), f"it runs as root: Uid {status['Uid']}")
    expect(int(status["CapEff"], 16) == 0, f"it has capabilities: {status['CapEff']}")
    mounts = [line.split() for line in running.engine.proc("mountinfo").splitlines()]
    (options,) = [mount[5].split(",") for mount in mounts if mount[4] == "/"]
    expect("ro" in options, f"its root file system can be written: {options}")


def check_mounted_weights(running: Running) -> None:
    """The weights of the folder that was mounted answer."""
    wanted = json.loads((MOUNTED / "manifest.json").read_text())["name"]
    model = running.post("/classify", PHOTO.read_bytes())["model"]
    expect(model["name"] == wanted, f"with the weights of {wanted} mounted the model is {model}")


def check_end(running: Running) -> None:
    """What is in flight on SIGTERM is answered; then it ends with status 0, and has complained of nothing."""
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
        _wait_for(running, "Shutting down")
        connection.sendall(photo)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    expect(answer.startswith(b"HTTP/1.1 200 "), f"what was in flight on SIGTERM was answered with {answer[:80]!r}")
    expect(running.process.wait(ENDS_WITHIN) == 0, f"SIGTERM ended it with status {running.process.returncode}, not 0")
    # What could not be written would be complained about.
    odd = [line for line in running.log() if " INFO " not in line]
    expect(not odd, f"its log holds more than INFO, first {odd[:1]}")


def _wait_for(running: Running, line: str) -> None:
    end = time.monotonic() + ENDS_WITHIN
    while not any(line in each for each in running.log()):
        expect(time.monotonic() < end, f"its log does not say: {line}")
        time.sleep(0.05)


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
