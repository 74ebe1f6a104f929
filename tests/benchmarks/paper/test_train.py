"""Real trainings of a tiny scale on handwritten digits: skipped, resumed after a kill, measured, written down."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.paper import __main__ as command
from benchmarks.paper import speed
from benchmarks.paper import train as training
from benchmarks.paper.curve import even_thresholds
from benchmarks.paper.figures import contact_sheet, easy_and_hard
from benchmarks.paper.measure import OUTPUTS, Result, load_result, load_results
from benchmarks.paper.plan import Run, Scale
from msmlp.model.data import load_dataset
from msmlp.model.errors import TrainingStoppedError
from msmlp.model.exits.rule import exit_of
from msmlp.model.training.run_log import read_metrics
from msmlp.model.training.trainer import train

Call = Callable[..., int]
KILLED = """
import os, signal, sys
from benchmarks.paper import __main__, plan
from msmlp.model.training import checkpoint
stage = {"width": 8, "depth": 1, "token_hidden": 4, "channel_hidden": 8}
plan.SCALES["tiny"] = plan.Scale("tiny", ("tiny",), stage, 2, "float32", 2)
save = checkpoint.save
checkpoint.save = lambda *given: (save(*given), os.kill(os.getpid(), signal.SIGKILL))
__main__.main()
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tiny: Scale, digits_folder: Path) -> Call:
    """`call(out, "--only", NAME)`: the command's exit status."""

    def run(out: Path, *options: str) -> int:
        words = ["--data", digits_folder, "--out", out, "--scale", tiny.name, "--device", "cpu", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", ["paper", *map(str, words), *options])
        return command.main()

    return run


@pytest.mark.system  # it takes ten seconds or more
@pytest.mark.usefixtures("no_graphs")
def test_runs_are_trained_measured_and_skipped_then(
    call: Call,
    tiny: Scale,
    digits_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["cifar10-tiny-all-0", "cifar10-tiny-mixer-4-0"]
    assert call(tmp_path, "--only", *names) == 0
    said = capfd.readouterr().err
    assert re.search(r"cifar10-tiny-all-0: done, trained at \d+ images/s", said)
    results = {run.name: result for run, result in load_results(tiny, tmp_path).items()}
    assert results.keys() == set(names)
    cascade = results[names[0]]
    assert cascade.test.correct.shape == (150, 3)
    assert cascade.validation.scores.shape == (40, 3)
    with np.load(tmp_path / names[0] / OUTPUTS) as kept:
        sums = kept["test_probabilities"].astype(float).sum(axis=2)
        assert np.allclose(sums, 1, atol=0.01)
        assert (kept["test_probabilities"].argmax(axis=2) == kept["test_labels"][:, None])[
            cascade.test.correct
        ].mean() > 0.95
    manifest = json.loads((tmp_path / names[0] / "manifest.json").read_text())
    assert manifest["training"]["command"] == cascade.about["command"]
    assert cascade.about["command"].startswith("msmlp train --data ")
    assert "(150)" in (tmp_path / "README.md").read_text()

    monkeypatch.setattr(training, "train", lambda _: pytest.fail("trained again"))
    assert call(tmp_path, "--only", *names, "--page", str(tmp_path / "elsewhere" / "page.md")) == 0
    assert "cifar10-tiny-all-0: done\n" in capfd.readouterr().err
    assert (tmp_path / "elsewhere" / "figure-4-cifar10.png").exists()

    assert call(tmp_path, "--speed", "--rounds", "1") == 0
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert measured["cifar10-tiny"]["images"] == 150
    assert len(measured["cifar10-tiny"]["ratios"]) == 1
    assert "cifar100-tiny: needs cifar100-tiny-all-0 and" in capfd.readouterr().err

    pixels, backend = load_dataset(digits_folder, 32).test.pixels, speed._backend(tmp_path / names[0], "cpu")
    limits = [_widest_gap(cascade.test.scores[:, k]) for k in (0, 1)]
    goes_on = cascade.test.scores[:, :2] < limits
    assert speed.one_pass(backend, pixels, limits) == [150, goes_on[:, 0].sum(), goes_on.all(axis=1).sum()]
    assert speed.one_pass(backend, pixels, (0.0, 0.0)) == [150, 0, 0]
    assert speed.one_pass(backend, pixels, (1.0, 1.0)) == [150, 150, 150]


def _widest_gap(scores: np.ndarray) -> float:
    """A threshold that no rounding moves an image across."""
    middle = np.sort(scores.astype(float))[40:110]
    widest = int(np.diff(middle).argmax())
    return float(middle[widest : widest + 2].mean())


@pytest.mark.usefixtures("no_graphs")
def test_the_contact_sheet_shows_easy_and_hard_images(
    tiny: Scale, digits_folder: Path, tmp_path: Path, made_up: Callable[..., Result]
) -> None:
    run = Run(tiny, "cifar10", "tiny", "all", 0)
    options = run.options(digits_folder, tmp_path / run.name, "cpu", 1)
    train(replace(options, epochs=0))
    result, costs = made_up([0.4, 0.5, 0.9], images=150), run.gflops()
    rows = easy_and_hard(result, costs)
    assert len(rows) == 4
    left = exit_of(result.test.scores, np.array(even_thresholds(result.validation.table(costs))))
    for label, *both in rows:
        sure = [result.test.scores[images, 0] for images in both]
        assert min(sure[0]) > max(sure[1])
        assert sure[0][0] == result.test.scores[(result.test.labels == label), 0].max()
        for images, exit in zip(both, (1, 3), strict=True):
            assert len(images) == 3
            assert (result.test.labels[images] == label).all()
            assert (left[images] == exit).all()
            assert result.test.correct[images, exit - 1].all()
    contact_sheet(options, result, costs, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.system  # it takes ten seconds or more
@pytest.mark.usefixtures("no_graphs")
def test_a_killed_run_is_resumed(
    call: Call, tiny: Scale, digits_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "cifar10-tiny-mixer-16-0"
    words = ["--data", digits_folder, "--out", tmp_path, "--scale", "tiny", "--device", "cpu", "--threads", "1"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, words), "--only", name], capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = tmp_path / name
    assert training.state(folder).startswith("interrupted, 1 epochs done")
    first = read_metrics(folder / "metrics.jsonl")
    capfd.readouterr()
    assert call(tmp_path, "--list", "--only", name) == 0
    assert f"{name}: interrupted, 1 epochs done" in capfd.readouterr().out
    assert call(tmp_path, "--only", name) == 0
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0] == first[0]  # not trained again
    assert training.state(folder) == "done"


def test_a_run_of_another_process_is_left_alone(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cifar10-tiny-none-0"
    (tmp_path / name).mkdir()
    assert training.state(tmp_path / name) == "interrupted, 0 epochs done"
    lock = os.open(tmp_path / name, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call(tmp_path, "--only", name) == 0
        assert f"{name}: running, 0 epochs done" in capfd.readouterr().err
        # It began between the look and the training.
        states = iter(["missing"])
        monkeypatch.setattr(training, "state", lambda _: next(states))
        assert call(tmp_path, "--only", name) == 0
        assert f"{name}: another process began it" in capfd.readouterr().err
    finally:
        os.close(lock)


def test_a_run_that_cannot_go_on_does_not_end_the_campaign(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fails(options: object) -> None:
        seen.append(options)
        raise TrainingStoppedError("the loss became nan")

    monkeypatch.setattr(training, "train", fails)
    assert call(tmp_path, "--only", "cifar10-tiny-*-1") == 1
    assert len(seen) == 5
    said = capfd.readouterr().err
    assert "cifar10-tiny-first-1: the loss became nan" in said
    assert "README.md is written" in said


def test_a_mistake_is_one_line(call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "--only", "nothing") == 1
    assert capfd.readouterr().err.startswith(
        "only: 'nothing' is not the name of a run; expected one of cifar10-tiny-all-0"
    )


def test_nothing_is_trained_without_its_data(call: Call, tmp_path: Path, tiny: Scale) -> None:
    assert call(tmp_path, "--only", "cifar100-*") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]
    run = Run(tiny, "cifar100", "tiny", "all", 0)
    with pytest.raises(FileNotFoundError):
        load_result(tmp_path / run.name)
