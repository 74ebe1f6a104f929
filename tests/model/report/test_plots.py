from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.evaluate import Measured, bins_of, calibration_error
from msmlp.model.report.plots import (
    confusion_matrix,
    most_confused,
    plot_confusion,
    plot_frontier,
    plot_reliability,
)

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
ANSWERS = np.array([0, 2, 2, 1, 0, 2, 2, 2])


def test_rows_are_labels_and_columns_answers() -> None:
    assert confusion_matrix(LABELS, ANSWERS, 3).tolist() == [[1, 0, 2], [1, 1, 0], [0, 0, 3]]


def test_the_most_frequent_mistakes_come_first_and_none_is_made_up() -> None:
    matrix = confusion_matrix(LABELS, ANSWERS, 3)
    assert most_confused(matrix, 5) == [(0, 2, 2), (1, 0, 1)]
    assert most_confused(matrix, 1) == [(0, 2, 2)]
    assert most_confused(np.diag([3, 2, 1]), 5) == []


@pytest.mark.parametrize("classes", [3, 40])
def test_the_picture_is_darker_where_more_images_are(classes: int, tmp_path: Path) -> None:
    matrix = np.diag(np.full(classes, 9))
    plot_confusion(matrix, tuple(f"class {k}" for k in range(classes)), "a title", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 0] < 60)
    # The diagonal's cells and no others: 1 / classes of the matrix, which fills most of the picture.
    assert 0.3 / classes < blue.mean() < 1.1 / classes


def test_bins_hold_their_images() -> None:
    confidence = np.array([0.05, 0.31, 0.35, 0.39, 1.0])
    found = bins_of(confidence, np.array([False, True, False, True, True]), bins=10)
    assert found.middle == pytest.approx([0.05, 0.35, 0.95])
    assert found.share == pytest.approx([0.2, 0.6, 0.2])
    assert found.confidence == pytest.approx([0.05, 0.35, 1.0])
    assert found.accuracy == pytest.approx([0.0, 2 / 3, 1.0])


def test_the_gaps_that_are_drawn_are_the_calibration_error(measured: Measured) -> None:
    for k in range(3):
        bins = bins_of(measured.outputs.probabilities[:, k].max(axis=1), measured.correct[:, k])
        assert bins.share.sum() == pytest.approx(1)
        gaps = bins.share @ abs(bins.accuracy - bins.confidence)
        assert gaps == pytest.approx(calibration_error(measured.outputs, measured.correct, k))


def test_every_exit_has_a_panel(measured: Measured, tmp_path: Path) -> None:
    plot_reliability(measured.outputs, measured.correct, "a title", tmp_path / "three.png")
    plot_reliability(measured.outputs, measured.correct[:, :1], "a title", tmp_path / "one.png")
    with Image.open(tmp_path / "three.png") as three, Image.open(tmp_path / "one.png") as one:
        assert three.format == "PNG"
        assert three.width > 2 * one.width


def test_a_frontier_is_drawn(measured: Measured, tmp_path: Path) -> None:
    plot_frontier("tiny", measured.calibration, tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    # White paper, black points, and the magenta crosses of the single exits.
    magenta = (pixels[..., [0, 2]] > 200).all(axis=2) & (pixels[..., 1] < 80)
    assert (pixels == 255).all(axis=2).mean() > 0.5
    assert (pixels < 30).all(axis=2).any()
    assert magenta.sum() > 20
