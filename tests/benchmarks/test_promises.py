"""The benchmark of promises: that each suspect would show where it is guilty."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.promises import adjusted, gap, main, nearest
from msmlp.model.data import Split
from msmlp.model.data.dataset import image_identity


def split(pixels: np.ndarray, labels: np.ndarray) -> Split:
    return Split(pixels, labels, np.stack([image_identity(image) for image in pixels]))


def test_a_mirrored_and_brightened_copy_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    training = split(rng.integers(0, 200, (50, 16, 16, 3), dtype=np.uint8), np.arange(50))
    images = split(training.pixels[[7, 30]][:, :, ::-1] + np.uint8(40), np.array([1, 2]))
    strange = split(rng.integers(0, 200, (2, 16, 16, 3), dtype=np.uint8), np.array([1, 2]))
    cosine, label = nearest(images, training)
    assert cosine == pytest.approx(np.ones(2), abs=1e-4)
    assert label.tolist() == [7, 30]
    assert (nearest(strange, training)[0] < 0.6).all()


def test_a_harder_set_is_explained_by_a_control_and_choice_is_not() -> None:
    rng = np.random.default_rng(0)
    easy, hard = rng.random(4000) < 0.9, rng.random(4000) < 0.7
    controls = [each[:, None].astype(np.float32) for each in (easy, hard)]
    same = [each ^ (rng.random(4000) < 0.05) for each in (easy, hard)]
    assert gap(same[0], same[1])["expected_minus_reached"] > 0.15
    left = adjusted(same, controls)
    assert abs(left["expected_minus_reached"]) < 3 * left["standard_error"] < 0.03
    flattered = [same[0] | (rng.random(4000) < 0.5), same[1]]
    assert adjusted(flattered, controls)["expected_minus_reached"] > 0.03


def test_a_whole_run_prints_each_suspect(
    audited_weights: Path, audited_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", audited_weights, "--data", audited_digits, "--controls", audited_weights, "--pairs", "2"]
    monkeypatch.setattr(sys, "argv", ["promises", *map(str, options)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert "100 validation and 50 test images" in lines[0]
    assert "near one of 800 training images" in lines[3]
    # At equal answers of the same network nothing is left of its last exit.
    assert lines[-1].split("  ")[-1].startswith(("exit 3 +0.00", "exit 3 -0.00"))
