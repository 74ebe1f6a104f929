"""What a run needs: the peers' virtual environment, two untrained networks, and the right answers to each image."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.programs import Answer, Graphs, decode
from msmlp.bench.http import SERVE
from msmlp.bench.images import pick_images
from msmlp.model.errors import MsmlpError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SHARED = ("numpy", "onnxruntime", "pillow")
"""In the versions of our environment, so that servers are compared and not libraries."""
REPORTED = ("litserve", "fastapi", "uvicorn", "uvloop", "httptools", *SHARED)
SIZE = 32
PICTURES, CLASSES = 400, 10
_BLOCKS = {"width": 128, "channel_hidden": 512}
NETS: dict[str, list[dict[str, int]]] = {
    # 64 tokens, 0.0766 GFLOPs.
    "plain": [{"patch": 4, "depth": 8, "token_hidden": 64, **_BLOCKS}],
    # 16 tokens, then 64: 0.0094 GFLOPs, and 0.0775 for an image that goes to the end.
    "cascade": [
        {"patch": 8, "depth": 4, "token_hidden": 32, **_BLOCKS},
        {"patch": 4, "depth": 7, "token_hidden": 64, **_BLOCKS},
    ],
}


class PeersError(MsmlpError):
    """Something that the benchmark needs could not be made."""


def environment(folder: Path) -> str:
    """The Python of the environment in `folder`, which is created where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    shared = [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _run([*pip, "--requirement", str(REQUIREMENTS), *shared])
    return str(python)


def versions(python: str) -> dict[str, str]:
    """The versions of the peers' packages. Raises PeersError if torch is there: it would slow them down."""
    listed = _run([python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"])
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    if "torch" in found:
        raise PeersError("torch is in the peers' environment, which must not have it; remove that folder")
    return {name: found[name] for name in REPORTED if name in found}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise PeersError(f"{' '.join(command[1:4])} ... ended with {done.returncode}: {words[-1]}")
    return done.stdout


def make_nets(folder: Path, nets: dict[str, list[dict[str, int]]] = NETS) -> dict[str, Path]:
    shutil.rmtree(folder, ignore_errors=True)
    pictures, made = _pictures(folder / "pictures"), {}
    for name, stages in nets.items():
        weights = made[name] = folder / name
        shape = f"stages={json.dumps(stages)}"
        fixed = ("--preset", "tiny", "--recipe", "quick", "--epochs", "0", "--device", "cpu")
        _msmlp("train", "--data", str(pictures), *fixed, "--set", shape, "--out", str(weights))
        _msmlp("export", "--weights", str(weights))
    return made


def gflops(weights: Path) -> list[float]:
    """The cost of an image that leaves at each exit."""
    facts = json.loads(_msmlp("info", "--weights", str(weights), "--json"))
    return [float(row["gflops"]) for row in facts["exits"]]


def _pictures(folder: Path) -> Path:
    """Squares of a photograph as an image folder; the classes are arbitrary, as nothing is trained."""
    for number, pixels in enumerate(pick_images(None, PICTURES, SIZE)):
        place = folder / "train" / str(number % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder


def _msmlp(*arguments: str) -> str:
    return _run([sys.executable, "-c", SERVE, *arguments])


def half_threshold(scores: NDArray[np.float32]) -> float:
    """In the widest gap between scores within 1 % of the median: half of the images leave, none by a rounding error."""
    ordered = np.sort(scores.astype(float))
    half, slack = len(ordered) // 2, len(ordered) // 100
    lower, upper = (ordered[half - slack - shift : half + slack + 1 - shift] for shift in (1, 0))
    widest = int((upper - lower).argmax())
    return float(lower[widest] + upper[widest]) / 2


def first_scores(folder: Path, files: Sequence[bytes]) -> NDArray[np.float32]:
    """The scores of stage 1, which are its confidences: the exit policy is the largest probability."""
    graphs = Graphs(folder, [0.0], threads=1)
    pixels = np.stack([decode(file, graphs.size) for file in files])
    return np.array([answer["confidence"] for answer in graphs.classify(pixels)], dtype=np.float32)


def right_answers(folder: Path, thresholds: Sequence[float], files: Sequence[bytes]) -> list[Answer]:
    """One answer per file, each run alone."""
    graphs = Graphs(folder, list(thresholds), threads=1)
    return [graphs.classify_one(decode(file, graphs.size)[None]) for file in files]
