from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.report.confusion import confusion_matrix, most_confused, plot_confusion

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
