"""A folder of runs of every kind: finished, a teacher, a student of it, unfinished."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from msmlp.model.report.measure import Measured, measure


def rewrite(path: Path, **training: Any) -> None:
    """Change what a manifest says of its training."""
    manifest = json.loads(path.read_text())
    manifest["training"] |= training
    path.write_text(json.dumps(manifest))


def make_teacher(folder: Path, like: Path) -> str:
    """A teacher's folder, with the training of `like` → the hash of its model."""
    folder.mkdir()
    model = b"weights of a convolutional network"
    (folder / "model.safetensors").write_bytes(model)
    training = json.loads((like / "manifest.json").read_text())["training"]
    described = {
        "format": 1,
        "name": folder.name,
        "network": {"kind": "resnet", "stem": 16, "widths": [16, 32], "blocks": 2, "classes": 10},
        "classes": [str(i) for i in range(10)],
        "preprocess": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "files": {"model.safetensors": hashlib.sha256(model).hexdigest()},
        "training": {**training, "preset": "teacher-s", "recipe_name": "teacher"},
        "results": [{"exit": 1, "split": "val", "images": 40, "accuracy": 0.975}],
        "gflops": 1.25,
    }
    (folder / "teacher.json").write_text(json.dumps(described))
    return described["files"]["model.safetensors"]  # type: ignore[index, no-any-return]


def make_unfinished(folder: Path, like: Path, epochs: int) -> None:
    """What a run like `like` leaves when it is stopped after `epochs` epochs."""
    folder.mkdir()
    state = torch.load(like / "checkpoint.pt", weights_only=True)
    torch.save({**state, "epochs_done": epochs}, folder / "checkpoint.pt")
    lines = (like / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:epochs]))


@pytest.fixture
def runs(tiny_weights: Path, tmp_path: Path) -> Path:
    """`runs/plain`, `runs/half`, `runs/taught/student` and `runs/teacher`, which taught the student."""
    root = tmp_path / "runs"
    shutil.copytree(tiny_weights, root / "plain")
    sha256 = make_teacher(root / "teacher", tiny_weights)
    shutil.copytree(tiny_weights, root / "taught" / "student")
    rewrite(root / "taught" / "student" / "manifest.json", teacher={"name": "teacher", "sha256": sha256}, seed=7)
    make_unfinished(root / "half", tiny_weights, 2)
    return root


@pytest.fixture(scope="session")
def measured(tiny_weights: Path, digits_folder: Path) -> Measured:
    """The digits' test images through the tiny cascade."""
    return measure(tiny_weights, digits_folder, "test", "cpu")
