"""A new user's walk with photographs of one's own: train, evaluate, serve, and classify by budget.

What comes before it, `make serve` and the README's calls, is in test_make_serve.py.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.docs.test_readme import ROOT, blocks
from tests.processes import MSMLP, environment, msmlp_serve

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

PHOTOGRAPHS = ("brick", "grass", "gravel", "chelsea", "coffee")
FORMATS = (".jpg", ".png", ".webp", ".JPEG")


def crops(photograph: Image.Image, number: int, seed: int) -> Iterator[Image.Image]:
    """Squares and rectangles of different sizes out of a photograph."""
    draw = np.random.default_rng(seed)
    for _ in range(number):
        width, height = draw.integers(90, 150, 2)
        left, top = draw.integers(0, photograph.width - width), draw.integers(0, photograph.height - height)
        yield photograph.crop((left, top, left + width, top + height))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my-photos: the left of each photograph to train on, the right to test on; and what goes wrong."""
    home = tmp_path_factory.mktemp("home")
    photos = home / "my-photos"
    for label, name in enumerate(PHOTOGRAPHS):
        whole = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        middle = 2 * whole.width // 3
        parts = {"train": (0, 0, middle, whole.height), "test": (middle, 0, whole.width, whole.height)}
        for part, box in parts.items():
            folder = photos / part / name
            (folder / "second camera").mkdir(parents=True)
            for number, crop in enumerate(crops(whole.crop(box), 40 if part == "train" else 15, seed=label)):
                at = folder / "second camera" if number % 5 == 0 else folder
                crop.save(at / f"IMG_{number}{FORMATS[number % len(FORMATS)]}")
    cats = photos / "train" / "chelsea"
    whole_file = (cats / "IMG_4.jpg").read_bytes()
    (cats / "half.jpg").write_bytes(whole_file[: len(whole_file) // 2])
    (cats / "page.jpg").write_text("<html>404</html>")
    (cats / "IMG_9.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (home / "examples").symlink_to(ROOT / "examples")
    shutil.copy(next((photos / "test" / "coffee").glob("*.jpg")), home / "picture.jpg")
    return home


@pytest.fixture(scope="module")
def walked(home: Path) -> "subprocess.CompletedProcess[str]":
    """The README's lines on training, as they stand."""
    path = f"{Path(MSMLP).parent}{os.pathsep}{os.environ['PATH']}"
    [commands] = blocks("sh")
    return subprocess.run(
        ["sh", "-ec", commands],
        cwd=home,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_training_says_what_it_found_and_evaluating_how_good_it_is(
    walked: "subprocess.CompletedProcess[str]",
) -> None:
    assert walked.returncode == 0, walked.stderr
    said = [line.split() for line in walked.stderr.splitlines()]
    assert ["class", "training", "validation", "test", "unread"] in said
    assert ["chelsea", "36", "4", "15", "2"] in said
    assert "warning: 2 images of my-photos cannot be read and are left out" in walked.stderr
    assert re.search(r"train/chelsea/half.jpg: .*(damaged|truncated)", walked.stderr)
    assert "train/chelsea/page.jpg: not a readable image but an HTML page" in walked.stderr
    assert "files not used: 1 .heic" in walked.stderr
    assert "including images in subfolders: test/brick/second camera and 9 more" in walked.stderr
    assert "init: cifar10-s has other classes; the heads are new, the rest is kept" in walked.stderr
    assert re.search(
        r"training on cpu \(\d threads?\), float32: about \d+ (seconds|minutes) for 30 epochs", walked.stderr
    )
    assert "Traceback" not in walked.stderr
    last_exit = re.search(r"^3 +([0-9.]+) %", walked.stdout, flags=re.MULTILINE)
    assert last_exit, walked.stdout
    assert float(last_exit[1]) > 80


def test_the_result_is_served_and_classifies_by_budget(home: Path, walked: "subprocess.CompletedProcess[str]") -> None:
    assert walked.returncode == 0, walked.stderr
    assert shutil.which("curl"), "the README's calls are made with curl"
    with msmlp_serve(home / "weights" / "mine") as served:
        served.wait_for("engine: ready")
        [call] = [block for block in blocks("bash") if "budget_gflops" in block]
        call = call.replace("localhost:8000", served.url.removeprefix("http://")).replace(
            "examples/cat.jpg", "picture.jpg"
        )
        done = subprocess.run(["sh", "-ec", call], cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["operating_point"]["expected_gflops"] <= 0.006
        assert [result["label"] for result in answer["results"]] == ["coffee", "coffee"]
        assert answer["model"]["name"] == "mine"
