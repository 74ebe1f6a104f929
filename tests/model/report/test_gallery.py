from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.errors import DataError, OptionError
from msmlp.model.evaluate import Measured
from msmlp.model.offline import Outputs
from msmlp.model.report.gallery import Cut, choose, draw, telling_cut
from msmlp.model.weights import OperatingPoint

THRESHOLDS = (0.8, 0.6)


def with_points(measured: Measured, points: list[OperatingPoint]) -> Measured:
    """The same with other operating points."""
    calibration = copy(measured.calibration)
    calibration.points = tuple(points)
    return replace(measured, calibration=calibration)


def with_scores(measured: Measured, scores: NDArray[np.float32]) -> Measured:
    """The same images with these scores, at a `balanced` of thresholds THRESHOLDS."""
    balanced = measured.point("balanced").model_copy(update={"thresholds": THRESHOLDS})
    points = [balanced if point.name == "balanced" else point for point in measured.calibration.points]
    outputs = Outputs(scores, measured.outputs.probabilities)
    return replace(with_points(measured, points), outputs=outputs)


@pytest.fixture
def mixed(measured: Measured) -> Measured:
    """Every third image leaves at exit 1, the next at exit 2, the next at exit 3; later ones are surer."""
    number = np.arange(len(measured.images))
    first = np.where(number % 3 == 0, 0.8, 0.1) + number / 1000
    second = np.where(number % 3 == 1, 0.9, 0.1)
    scores = np.stack([first, second, np.full(len(number), 0.5)], axis=1).astype(np.float32)
    return with_scores(measured, scores)


def test_easy_images_left_first_and_hard_ones_last(mixed: Measured) -> None:
    rows = choose(mixed, telling_cut(mixed, "balanced"), classes=20, each=3)
    assert [row.label for row in rows] == list(mixed.classes)
    for row in rows:
        label = mixed.classes.index(row.label)
        assert len(row.easy) == len(row.hard) == 3
        assert all(mixed.images.labels[shown.index] == label for shown in (*row.easy, *row.hard))
        assert {(shown.exit, shown.index % 3) for shown in row.easy} == {(1, 0)}
        assert {(shown.exit, shown.index % 3) for shown in row.hard} == {(3, 2)}
        # Later images have higher scores at exit 1: the surest easy ones, the least sure hard ones.
        same = np.flatnonzero(mixed.images.labels == label)
        assert [shown.index for shown in row.easy] == [i for i in same[::-1] if i % 3 == 0][:3]
        assert [shown.index for shown in row.hard] == [i for i in same if i % 3 == 2][:3]


def test_what_stands_below_an_image_is_what_serving_would_answer(mixed: Measured) -> None:
    for row in choose(mixed, telling_cut(mixed, "balanced"), classes=3, each=2):
        for shown in (*row.easy, *row.hard):
            assert shown.answer == mixed.classes[mixed.outputs.predictions[shown.index, shown.exit - 1]]
            assert shown.score == pytest.approx(mixed.outputs.scores[shown.index, shown.exit - 1])
            assert shown.right == (shown.answer == row.label)


def test_classes_with_both_kinds_are_drawn(mixed: Measured) -> None:
    scores = mixed.outputs.scores.copy()
    scores[~np.isin(mixed.images.labels, [2, 5]), 0] = 1.0
    few = with_scores(mixed, scores)
    assert [row.label for row in choose(few, telling_cut(few, "balanced"), classes=6, each=2)] == ["2", "5"]
    assert len(choose(mixed, telling_cut(mixed, "balanced"), classes=4, each=2)) == 4


def test_where_no_image_needs_the_last_exit_the_latest_one_is_hard(mixed: Measured) -> None:
    scores = mixed.outputs.scores.copy()
    scores[:, 1] = 1.0
    early = with_scores(mixed, scores)
    rows = choose(early, telling_cut(early, "balanced"), classes=6, each=2)
    assert {shown.exit for row in rows for shown in row.hard} == {2}


def test_another_point_is_taken_where_balanced_tells_nothing(mixed: Measured) -> None:
    assert telling_cut(mixed, None).name == "balanced"
    # At balanced every image leaves at once; below its threshold, the others still tell images apart.
    points = [point.model_copy(update={"thresholds": (0.0, 0.0)}) for point in mixed.calibration.points]
    points[-1] = points[-1].model_copy(update={"thresholds": THRESHOLDS})
    assert points[-1].name != "balanced"
    assert telling_cut(with_points(mixed, points), None).name == points[-1].name


def test_where_every_point_treats_all_alike_the_least_sure_go_on(mixed: Measured) -> None:
    points = [point.model_copy(update={"thresholds": (0.0, 0.0)}) for point in mixed.calibration.points]
    alike = with_points(mixed, points)
    cut = telling_cut(alike, None)
    assert cut.name == "the lowest tenth of scores goes on"
    left = alike.left(cut.thresholds)
    assert (left == 3).sum() == 15
    assert alike.outputs.scores[left == 3, 0].max() < alike.outputs.scores[left == 1, 0].min()
    assert choose(alike, cut, 6, 4)
    with pytest.raises(DataError, match="try another --policy"):
        choose(alike, telling_cut(alike, "balanced"), 6, 4)


def test_an_unknown_point_and_a_single_exit_are_refused(mixed: Measured) -> None:
    with pytest.raises(OptionError, match="'slow' is not an operating point"):
        telling_cut(mixed, "slow")
    one = replace(mixed, outputs=Outputs(mixed.outputs.scores[:, :1], mixed.outputs.probabilities[:, :1]))
    with pytest.raises(OptionError, match="has one exit"):
        choose(one, Cut("any", ()), 6, 4)


def test_the_images_themselves_are_drawn(mixed: Measured, tmp_path: Path) -> None:
    green = np.zeros_like(mixed.images.pixels)
    green[..., 1] = 255
    coloured = replace(mixed, images=replace(mixed.images, pixels=green))
    rows = choose(coloured, telling_cut(coloured, "balanced"), classes=4, each=3)
    draw(rows, coloured, telling_cut(coloured, "balanced"), tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (0, 255, 0)).all(axis=2).mean() > 0.3


def test_a_file_that_cannot_be_written_is_refused(mixed: Measured, tmp_path: Path) -> None:
    rows = choose(mixed, telling_cut(mixed, "balanced"), classes=1, each=1)
    with pytest.raises(OptionError, match=r"out: .* cannot be written"):
        draw(rows, mixed, telling_cut(mixed, "balanced"), tmp_path / "nowhere" / "gallery.png")
