"""The two nets of the benchmark, untrained, made, calibrated and exported by our own commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from benchmarks.peers.environment import PeersError
from msmlp.bench.http import SERVE
from msmlp.bench.images import pick_images

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


def make_nets(folder: Path, nets: dict[str, list[dict[str, int]]] = NETS) -> dict[str, Path]:
    """Weights folders with their graphs, made anew."""
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
    """What an image has cost when it leaves at each exit."""
    facts = json.loads(_msmlp("info", "--weights", str(weights), "--json"))
    return [float(row["gflops"]) for row in facts["exits"]]


def _pictures(folder: Path) -> Path:
    """Squares of a photograph as an image folder; the classes mean nothing, as nothing is learnt."""
    for number, pixels in enumerate(pick_images(None, PICTURES, SIZE)):
        place = folder / "train" / str(number % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder


def _msmlp(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", SERVE, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PeersError(f"msmlp {arguments[0]} ended with {done.returncode}; it said: {done.stderr.strip()[-300:]}")
    return done.stdout
