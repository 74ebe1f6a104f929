"""examples/photos.py: its parts, and the whole of it on a few squares of photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

from examples import photos
from examples.photos import (
    SIZE,
    Both,
    First,
    Head,
    batches,
    channels,
    efficientnet_lite0,
    read_photos,
    sort_photos,
    train,
)
from msmlp.bench.images import squares
from msmlp.model.views import Resize, View, Views

PER_CLASS = 40


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def write_squares(folder: Path, side: int = 96) -> Path:
    """Squares of two photographs as JPEG, a class each, in two of a data set's own splits."""
    for name in ("astronaut", "coffee"):
        for number, pixels in enumerate(squares(photograph(name), PER_CLASS, side)):
            into = folder / ("train" if number % 4 else "validation") / name
            into.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(into / f"{number}.jpg", quality=95)
    return folder


def parts(out: Path) -> dict[str, set[str]]:
    return {part.name: {path.name for path in part.rglob("*.jpg")} for part in (out / "photos").iterdir()}


def test_the_split_depends_on_the_contents_alone(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    assert sort_photos(data, tmp_path / "one") == ["astronaut", "coffee"]
    for number, path in enumerate(sorted(data.rglob("*.jpg"))):
        again = tmp_path / "renamed" / path.parent.name / f"{number % 7}" / f"{number}.JPG"
        again.parent.mkdir(parents=True, exist_ok=True)
        path.rename(again)
    for folder in (tmp_path / "renamed").glob("*/*/"):
        for path in folder.iterdir():
            path.rename(folder.parent / path.name)
        folder.rmdir()
    sort_photos(tmp_path / "renamed", tmp_path / "two")
    one = parts(tmp_path / "one")
    assert one == parts(tmp_path / "two")
    assert sum(map(len, one.values())) == len(set.union(*one.values())) == 2 * PER_CLASS
    assert len(one["train"]) > len(one["val"]) > 0 < len(one["test"])


def test_a_folder_without_photographs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no photographs; expected folders named like the classes"):
        sort_photos(tmp_path, tmp_path / "out")


def test_pixels_are_those_that_the_service_gives_the_networks(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with io.BytesIO() as file:
        photograph("chelsea").crop((0, 0, 301, 200)).save(file, "JPEG", quality=95)
        content = file.getvalue()
    (tmp_path / "cat" / "1.jpg").write_bytes(content)
    (pixels,), labels = read_photos(tmp_path, ["cat"], SIZE)
    served = Views((View(SIZE, Resize(shorter_side=SIZE)),)).pixels(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), served)
    assert labels.tolist() == [0]


def test_an_epoch_shows_every_picture_once_in_the_networks_size() -> None:
    torch.manual_seed(0)
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 3, 80, 80)
    seen = list(batches(images, torch.arange(100)))
    assert sorted(torch.cat([labels for _, labels in seen]).tolist()) == list(range(100))
    assert {tuple(pixels.shape[1:]) for pixels, _ in seen} == {(3, SIZE, SIZE)}
    assert all((pixels[:, 0, 0, 0].argsort() == labels.argsort()).all() for pixels, labels in seen)


@pytest.mark.parametrize(("stride", "side"), [(2, 2), (1, 4)])
def test_the_network_is_efficientnet_lite0(stride: int, side: int) -> None:
    network = efficientnet_lite0(stride, pretrained=False).eval()
    assert network(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 1280, side, side)
    classifier = 1280 * 1000 + 1000
    assert sum(each.numel() for each in network.parameters()) + classifier == 4_652_008  # as timm counts them


def test_weights_that_are_not_installed_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PACKAGE", "no_such_weights")
    with pytest.raises(SystemExit, match=r"no_such_weights is not installed: run .*, or give --from-scratch"):
        efficientnet_lite0(2, pretrained=True)


def test_training_learns_both_exits_and_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = sort_photos(write_squares(tmp_path / "data"), tmp_path)
    said = []
    for _ in range(2):
        torch.manual_seed(0)
        blocks = nn.Sequential(*efficientnet_lite0(2, pretrained=False)[:2])
        network = Both(First(blocks, 2), nn.Sequential(nn.Conv2d(channels(blocks), 8, 3), nn.ReLU(), Head(8, 2)))
        train("both", network, tmp_path / "photos", classes, epochs=4)
        said.append([line.rpartition(",")[0] for line in capsys.readouterr().out.splitlines()])
    assert said[0] == said[1]
    assert "validation" in said[0][3]
    assert said[0][3].startswith("both: epoch 4 of 4")
    assert float(said[0][3].split("loss ")[1].split(",")[0]) < float(said[0][0].split("loss ")[1].split(",")[0])
