"""The benchmark of a cascade beside its networks: what is sent, and that it counts what is right."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.cascade import Picture, Served, compared, main, read_pictures, scaled, table
from msmlp.bench.processes import Server
from msmlp.model.errors import DataError
from msmlp.model.evaluate import measure
from msmlp.model.views import Resize, View
from tests.imported import imported, network


def served(name: str, speeds: list[float], costs: list[float], right: list[bool]) -> Served:
    made = Served(Server(name, "http://nowhere", None), "/classify", dict(enumerate(right)))
    made.speeds.extend(speeds)
    made.costs.extend(costs)
    made.exits.update({1: 3, 2: 1})
    return made


def test_ratios_are_of_rounds_and_accuracies_of_the_same_pictures() -> None:
    cascade = served("cascade", [30, 10, 20], [1, 2, 1], [True, True, False, True])
    alone = served("large", [10, 5, 10], [2, 4, 2], [True, False, False, True, True])
    assert compared(cascade, alone) == (
        "cascade beside large: 2.00 ± 0.33 times the images/s, 2.00 ± 0.00 times the images per CPU second, "
        "+25.00 ± 25.00 points on 4 pictures"
    )
    assert table([cascade])[2] == "| cascade | 75.00 ± 25.00 % of 4 | 75 % / 25 % | 20 | 1.00 |"


def test_a_scaled_picture_is_the_square_that_a_stage_reads(cat_photo: bytes) -> None:
    square = scaled(Picture(cat_photo, "cat"), View(48, Resize(shorter_side=60)))
    image = Image.open(io.BytesIO(square.content))
    assert (image.format, image.size, square.label) == ("PNG", (48, 48), "cat")
    again = scaled(square, View(48, Resize(shorter_side=48)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(again.content))), np.asarray(image))


def test_pictures_have_the_names_of_their_classes(tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/deep/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    assert {picture.label for picture in read_pictures(tmp_path)} == {"cat", "dog"}
    with pytest.raises(DataError, match="has no pictures; expected"):
        read_pictures(tmp_path / "cat")


@pytest.mark.system
@pytest.mark.parametrize("how", [[], ["--scaled", "--options", "thresholds=1"]])
def test_a_server_gets_right_what_its_weights_get_right(
    how: list[str], digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = network(digits, 32, 4), network(digits, 32, 24)
    cascade = imported(tmp_path / "cascade", digits, small, large)
    alone = imported(tmp_path / "large", digits, large)
    data = tmp_path / "photos"
    shutil.copytree(data / "val", data / "test")
    words = ["cascade", "--data", data, "--alone", alone, "--rounds", "2", "--seconds", "1", "--serve", "--max-batch 8"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in (*words, *how, "--weights", cascade)])
    main()
    out = capsys.readouterr().out
    right = measure(alone, data, "test", device="cpu").correct[:, -1]
    assert f"| large | {right.mean():.2%}"[:-1] in out
    assert f"of {len(right)} | 100 % |" in out
    assert "cascade beside large: " in out
    if how:  # all pictures run to the end, where the same network answers
        assert f"+0.00 ± 0.00 points on {len(right)} pictures" in out
        assert "the cascade with thresholds=1" in out
