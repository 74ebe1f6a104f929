"""docs/train-your-own.md, run from top to bottom: its commands, its server, its calls."""

import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from msmlp.model.nn.config import PRESETS, cumulative_gflops, override
from tests.docs.commands import blocks_of, run_commands
from tests.docs.test_readme import ROOT
from tests.fakes import PATIENCE_SECONDS
from tests.processes import environment, msmlp_serve

pytestmark = pytest.mark.system  # it takes half a minute

PAGE = (ROOT / "docs" / "train-your-own.md").read_text()
blocks = partial(blocks_of, PAGE)
# All that is changed of what stands there: fewer epochs.
EPOCHS = ("EPOCHS=30\n", "EPOCHS=3\n")


@dataclass(frozen=True)
class Followed:
    """Where the page's commands ran, and what they printed."""

    folder: Path
    out: str


@pytest.fixture(scope="module")
def followed(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """The `sh` blocks one after another, with the digits as my-photos."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my-photos").symlink_to(digits_folder)
    shutil.copy(next((digits_folder / "test" / "3").iterdir()), folder / "picture.png")
    commands = "".join(blocks("sh"))
    assert commands.count(EPOCHS[0]) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in set(os.environ) - set(environment()):
            patch.delenv(name)
        # doctor would stumble over whatever has port 8000 on this machine.
        patch.setenv("MSMLP_PORT", "0")
        # Of the weights trained here, one is served: calibrating exports its graphs.
        patch.setattr("msmlp.model.training.trainer.refresh_graphs", lambda *_: None)
        return Followed(folder, run_commands(commands.replace(*EPOCHS)))


def called(command: str, folder: Path, url: str) -> httpx.Response:
    """What a `curl -F name=value ... URL` of the page is answered; any other flag fails."""
    program, *words, address = shlex.split(command)
    assert program == "curl"
    assert words[::2] == ["-F"] * (len(words) // 2)
    fields = dict(field.split("=", 1) for field in words[1::2])
    picture = fields.pop("image")
    files = {"image": (folder / picture.removeprefix("@")).read_bytes()}
    address = "http://" + address.replace("localhost:8000", url.removeprefix("http://"))
    return httpx.post(address, data=fields, files=files, timeout=PATIENCE_SECONDS)


def test_training_calibrating_and_evaluating_go_as_the_page_says(followed: Followed) -> None:
    assert "ready to serve" in followed.out
    assert "exit policy max-probability, temperatures " in followed.out
    assert "150 test images of my-photos" in followed.out
    assert "trained by: msmlp train --data my-photos --init cifar10-s" in followed.out
    student = json.loads((followed.folder / "weights" / "student" / "manifest.json").read_text())
    assert student["training"]["teacher"]["name"] == "mine"


def test_the_cost_of_larger_pictures_is_the_presets() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\d.*to.*) \|$", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} == PRESETS.keys()
    for name, cells in rows:
        for size, cell in zip((32, 64, 96, 128), cells.split(" | "), strict=True):
            costs = cumulative_gflops(override(PRESETS[name], {"image_size": size}))
            assert cell == f"{costs[0]:.4f} to {costs[-1]:.4f}", (name, size)


def test_the_gallery_and_the_card_are_written(followed: Followed) -> None:
    assert (followed.folder / "gallery.png").stat().st_size > 1000
    assert {"card.md", "confusion.png", "reliability.png", "frontier.png"} <= {
        path.name for path in (followed.folder / "weights" / "mine").iterdir()
    }


def test_a_floor_and_a_budget_are_kept_over_http(followed: Followed) -> None:
    """Whatever the training gave: an accuracy is granted if it is expected of a point, and refused if not."""
    [serve] = [block.split() for block in blocks("console") if "msmlp serve" in block]
    assert serve[:3] == ["msmlp", "serve", "--weights"]
    with msmlp_serve(followed.folder / serve[3]) as running:
        running.wait_for("engine: ready")
        answers = [called(block, followed.folder, running.url) for block in blocks("bash")]
    floor, budget, accurate, too_cheap, certain = answers
    calibration = json.loads((followed.folder / serve[3] / "calibration.json").read_text())
    most = max(point["expected_accuracy"] for point in calibration["operating_points"])

    assert_kept_or_refused(floor, "min_accuracy", 0.6, most)
    assert_kept_or_refused(accurate, "accuracy_floor", 0.6, most)
    assert_kept_or_refused(certain, "min_accuracy", 1, most)
    assert budget.status_code == 200, budget.text
    assert budget.json()["operating_point"]["expected_gflops"] <= 0.004
    assert too_cheap.status_code == 422
    assert re.search(r"budget_gflops: .*expected 0\.00\d+ or more", too_cheap.json()["detail"])


def assert_kept_or_refused(answer: httpx.Response, name: str, accuracy: float, most: float) -> None:
    if accuracy <= most:
        assert answer.status_code == 200, answer.text
        assert answer.json()["operating_point"]["expected_accuracy"] >= accuracy
        return
    assert answer.status_code == 422, answer.text
    assert re.search(rf"{name}: .*expected 0 to 0\.\d+", answer.json()["detail"])
