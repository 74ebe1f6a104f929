"""Image folders: what is read, and that what cannot be read is named."""

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.data import load_dataset
from msmlp.model.errors import DataError
from msmlp.model.preprocess import load_image


def picture(value: int, size: tuple[int, int] = (12, 8)) -> Image.Image:
    noise = np.random.default_rng(value).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and test/ with the classes cat and dog, three images each."""
    root = tmp_path / "photos"
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(("dog", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                picture(100 * s + 10 * c + i).save(root / split / name / f"{i}.png")
    return root


def test_classes_are_the_folders_names_in_order(folder: Path) -> None:
    data = load_dataset(folder, 8)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.pixels.shape == (6, 8, 8, 3)
    assert data.test is not None
    assert len(data.test) == 6
    assert data.val is None


@pytest.mark.parametrize("name", ["large.jpg", "UPPER.JPEG", "b.bmp", "g.gif", "w.webp", "a.avif", "grey.png"])
def test_any_format_that_is_served_and_any_size(folder: Path, name: str) -> None:
    image = picture(7, (150, 100))
    (image.convert("L") if name == "grey.png" else image).save(folder / "train" / "cat" / name)
    data = load_dataset(folder, 16)
    assert len(data.train) == 7
    assert data.train.pixels.shape == (7, 16, 16, 3)


@pytest.mark.parametrize("name", ["t.tiff", "p.ppm"])
def test_another_format_stops_training_with_the_list_of_those_read(folder: Path, name: str) -> None:
    picture(7, (150, 100)).save(folder / "train" / "cat" / name)
    with pytest.raises(DataError, match=f"{name}: not a readable image.*; formats: PNG, JPEG, WEBP, BMP, GIF, AVIF"):
        load_dataset(folder, 16)


@pytest.mark.parametrize("name", ["large.jpg", "large.png", "large.webp"])
def test_the_network_sees_in_training_what_it_sees_when_serving(folder: Path, cat_photo: bytes, name: str) -> None:
    path = folder / "train" / "cat" / name
    Image.open(io.BytesIO(cat_photo)).save(path)
    data = load_dataset(folder, 32)
    assert np.array_equal(data.train.pixels[3], load_image(path.read_bytes(), 32))


def test_an_images_identity_does_not_depend_on_the_networks_size(folder: Path, cat_photo: bytes) -> None:
    (folder / "train" / "cat" / "large.jpg").write_bytes(cat_photo)
    small, large = (load_dataset(folder, size).train for size in (8, 48))
    assert np.array_equal(small.identities, large.identities)


def test_what_is_no_image_by_name_is_left_alone(folder: Path) -> None:
    (folder / "train" / "cat" / "notes.txt").write_text("the third one is the neighbour's")
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"\x00")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"a resource fork, as macOS leaves in archives")
    (folder / "train" / ".cache").mkdir()
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    (folder / "README.md").write_text("photos")
    assert len(load_dataset(folder, 8).train) == 6


def test_a_val_folder_is_the_validation_set(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "val")
    data = load_dataset(folder, 8)
    parts = data.partition(seed=0)
    assert len(parts.training) == 6
    assert data.test is not None
    assert np.array_equal(parts.validation.identities, data.test.identities)
    assert parts.audit is None
    shutil.copytree(folder / "test", folder / "audit")
    audit = load_dataset(folder, 8).partition(seed=0).audit
    assert audit is not None
    assert np.array_equal(audit.identities, data.test.identities)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        load_dataset(path, 8)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"\xff\xd8\xff\xe0 and no more"])
def test_an_unreadable_image_is_named(folder: Path, content: bytes) -> None:
    path = folder / "train" / "dog" / "bad.jpg"
    path.write_bytes(content)
    assert str(path) in refusal(folder)


def test_a_dangling_link_is_named(folder: Path) -> None:
    path = folder / "test" / "dog" / "gone.png"
    path.symlink_to(folder / "elsewhere.png")
    assert str(path) in refusal(folder)


def test_an_image_over_the_limit_is_named(folder: Path) -> None:
    path = folder / "train" / "cat" / "poster.png"
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0), b"IDAT"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    message = refusal(folder)
    assert str(path) in message
    assert "pixels" in message


def test_ones_own_images_may_be_larger_than_what_a_server_takes(folder: Path) -> None:
    Image.new("1", (8000, 5000)).save(folder / "train" / "cat" / "poster.png")
    assert len(load_dataset(folder, 8).train) == 7


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_named(folder: Path, split: str) -> None:
    shutil.rmtree(folder / split / "dog")
    (folder / split / "dog").mkdir()
    assert str(folder / split / "dog") in refusal(folder)


def test_one_class_only(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "dog")
    message = refusal(folder)
    assert str(folder / "train") in message
    assert "at least 2" in message


def test_no_class_at_all(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    picture(1).save(folder / "train" / "loose.png")
    assert str(folder / "train") in refusal(folder)


@pytest.mark.parametrize("split", ["test", "val"])
def test_names_that_differ_between_splits(folder: Path, split: str) -> None:
    shutil.copytree(folder / "train", folder / split, dirs_exist_ok=True)
    (folder / split / "dog").rename(folder / split / "hound")
    message = refusal(folder)
    assert str(folder / split) in message
    assert "dog, hound" in message


def test_a_class_that_one_split_lacks(folder: Path) -> None:
    shutil.copytree(folder / "train" / "dog", folder / "train" / "fox")
    message = refusal(folder)
    assert str(folder / "test") in message
    assert "fox" in message


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_folder_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    message = refusal(tmp_path / "holiday")
    assert str(tmp_path / "holiday") in message
    assert "train/<class>/*" in message


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04")
    assert str(tmp_path / "data.zip") in refusal(tmp_path / "data.zip")


def test_an_image_folder_with_a_file_called_meta_is_still_one(folder: Path) -> None:
    (folder / "meta").write_text("where the photos come from")
    assert load_dataset(folder, 8).classes == ("cat", "dog")
