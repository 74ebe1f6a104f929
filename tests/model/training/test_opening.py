"""What is said before a training: counts of images, and what is odd about them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.training.recipes import TrainOptions
from msmlp.model.training.trainer import train

Run = Callable[..., TrainOptions]


@pytest.fixture
def said(short_run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """What training on a folder says on stderr."""

    def run(data: Path, **fields: object) -> str:
        train(short_run(data=data, **{"epochs": 0, **fields}))
        return capsys.readouterr().err

    return run


@pytest.fixture
def data(few_digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(few_digits, tmp_path / "few"))


def add(folder: Path, number: int, start: int = 0) -> None:
    """Images of noise, each different."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(start, start + number):
        noise = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"noise-{seed}.png")


def test_the_images_of_each_class_are_counted(said: Callable[..., str], data: Path) -> None:
    for label in (3, 7, 8):
        add(data / "test" / f"digit-{label}", label, start=100 * label)
    lines = said(data).splitlines()
    assert lines[0] == "image folder few: 3 classes, 54 images"
    assert lines[1].split() == ["class", "training", "validation", "test"]
    assert [line.split() for line in lines[2:5]] == [[f"digit-{label}", "11", "1", str(label)] for label in (3, 7, 8)]
    assert lines[5].startswith("no audit set: ")
    assert "sizes: 16 x 16 to 20 x 16 pixels; the network sees the centre square at 16 x 16" in lines
    assert not any("warning" in line for line in lines)
    assert not any("not used" in line for line in lines)


def test_what_is_not_read_is_counted_and_warned_of(said: Callable[..., str], data: Path) -> None:
    for number in range(40):
        (data / "train" / "digit-7" / f"{number}.jpg").write_bytes(b"")
    (data / "train" / "digit-3" / "one.jpg").write_bytes(b"")
    (data / "train" / "digit-3" / "IMG_1.HEIC").write_bytes(b"")
    text = said(data)
    lines = [line.split() for line in text.splitlines()]
    assert ["digit-3", "11", "1", "1"] in lines
    assert ["digit-7", "11", "1", "40"] in lines
    assert ["digit-8", "11", "1", "0"] in lines
    assert "files not used: 1 .heic" in text
    assert "warning: digit-7: 12 images can be read and 40 cannot" in text
    assert "warning: digit-3" not in text


def test_classes_of_very_different_size_are_warned_of(said: Callable[..., str], data: Path) -> None:
    warning = "warning: digit-3 has 12 images and digit-8 120; the network may neglect the smaller class"
    add(data / "train" / "digit-8", 107)
    assert "warning" not in said(data)
    add(data / "train" / "digit-8", 1, start=107)
    assert warning in said(data)


def test_many_classes_that_lost_images_do_not_fill_the_screen(said: Callable[..., str], tmp_path: Path) -> None:
    for label in range(9):
        add(tmp_path / "many" / "train" / f"class-{label}", 3, start=1000 * label)
        (tmp_path / "many" / "train" / f"class-{label}" / "bad.png").write_bytes(b"")
    text = said(tmp_path / "many")
    assert text.count("3 images can be read and 1 cannot") == 5
    assert "warning: the same holds for 4 more classes" in text


def test_images_of_the_test_set_that_are_trained_on_are_warned_of(said: Callable[..., str], data: Path) -> None:
    shutil.copytree(data / "train", data / "test")
    assert "warning: 33 of 36 images in test/ are in train/ as well; the accuracy on them may be too high" in said(data)


def test_what_lies_elsewhere_is_named(said: Callable[..., str], data: Path) -> None:
    add(data / "valid" / "digit-3", 1)
    expected = "not used, as only train/, val/, test/ and audit/ with a folder per class are: valid/"
    assert expected in said(data).splitlines()


def test_of_many_classes_the_extremes_are_shown(said: Callable[..., str], tmp_path: Path) -> None:
    for label in range(30):
        add(tmp_path / "many" / "train" / f"class-{label:02}", 2 + label % 7, start=1000 * label)
    lines = said(tmp_path / "many").splitlines()
    assert "(the 10 smallest and the 10 largest of 30)" in lines
    assert sum(line.startswith("class-") for line in lines) == 20


def test_folders_within_classes_are_named(said: Callable[..., str], data: Path) -> None:
    add(data / "train" / "digit-3" / "upright", 1)
    add(data / "train" / "digit-7" / "upright", 1, start=1)
    assert "including images in subfolders: train/digit-3/upright and 1 more" in said(data)


def test_the_device_and_the_time_of_what_is_left(short_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = short_run(epochs=2)
    train(options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training on ")]
    assert line.startswith("training on cpu (1 thread), float32: about ")
    assert line.endswith(" for 2 epochs")
    train(short_run(epochs=0))
    assert "training on cpu (1 thread), float32\n" in capsys.readouterr().err
