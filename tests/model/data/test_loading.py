"""Image folders: what is read, and that what cannot be read is named."""

import io
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.data import load_dataset
from msmlp.model.data.loading import load_held_out
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


# --- images that cannot be read ----------------------------------------------------------------------------------


def spoil(folder: Path) -> dict[str, str]:
    """Add images that cannot be read, one for each reason → what is said of each."""
    cat, dog = folder / "train" / "cat", folder / "test" / "dog"
    picture(7).save(cat / "scan.tiff")
    picture(7).save(cat / "p.ppm")
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "page.png").write_bytes(b"<html></html>")
    (dog / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (dog / "gone.png").symlink_to(folder / "elsewhere.png")
    (dog / "endless.png").symlink_to("/dev/zero")  # no image at all, as a pipe is none
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0), b"IDAT"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (dog / "poster.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return {
        "train/cat/scan.tiff": "formats: PNG, JPEG, WEBP, BMP, GIF, AVIF",
        "train/cat/p.ppm": "formats: PNG, JPEG, WEBP, BMP, GIF, AVIF",
        "train/cat/empty.jpg": "not a readable image",
        "train/cat/page.png": "formats: PNG, JPEG, WEBP, BMP, GIF, AVIF",
        "test/dog/half.jpg": "damaged image header",
        "test/dog/gone.png": "No such file",
        "test/dog/poster.png": "image has more pixels than the limit",
    }


def test_what_cannot_be_read_is_left_out_and_listed_together(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_dataset(folder, 16)
    assert caplog.messages == []
    bad = spoil(folder)
    data = load_dataset(folder, 16)
    assert data.test is not None
    assert whole.test is not None
    assert np.array_equal(data.train.identities, whole.train.identities)
    assert np.array_equal(data.test.identities, whole.test.identities)
    found = {str(each.path): each.reason for each in data.findings.unread}
    assert found.keys() == bad.keys()
    assert all(reason in found[path] for path, reason in bad.items())
    (said,) = caplog.messages
    assert f"warning: 7 images of {folder} cannot be read and are left out" in said
    assert all(path in said for path in bad)
    assert len(said.splitlines()) == 1 + len(set(found.values()))  # a line for each reason


def test_strict_stops_at_them_and_names_them_all(folder: Path) -> None:
    bad = spoil(folder)
    with pytest.raises(DataError, match=f"7 images of {folder} cannot be read: ") as refused:
        load_dataset(folder, 16, strict=True)
    assert all(path in str(refused.value) for path in bad)
    assert "\n" not in str(refused.value)


def test_many_are_named_in_part(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(45):
        (folder / "train" / "dog" / f"bad-{number:02}.jpg").write_bytes(b"")
    load_dataset(folder, 16)
    assert "train/dog/bad-00.jpg" in caplog.text
    assert "train/dog/bad-19.jpg and 25 more: " in caplog.text
    assert "bad-20" not in caplog.text


def test_a_class_of_which_nothing_can_be_read_is_an_error(folder: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.write_bytes(b"")
    message = refusal(folder)
    assert f"none of the 3 images in {folder / 'train' / 'dog'} can be read; the first: train/dog/0.png: " in message


def test_a_class_of_which_all_is_of_another_kind_is_an_error_that_says_so(folder: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".HEIC"))
    assert refusal(folder).endswith("dog contains no image, but 3 .heic; formats: PNG, JPEG, WEBP, BMP, GIF, AVIF")


def test_what_lies_where_nothing_is_expected_is_named(folder: Path) -> None:
    (folder / "test").rename(folder / "valid")
    picture(7).save(folder / "train" / "loose.png")
    assert load_dataset(folder, 16).findings.unused == ("valid/", "1 image directly in train/")


def test_a_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, real = folder / "train" / "cat" / "closed", os.scandir
    closed.mkdir()

    def scandir(path: str | Path) -> object:  # the tests run as root, whom nothing is forbidden
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    [unread] = load_dataset(folder, 16).findings.unread
    assert (str(unread.path), unread.reason) == ("train/cat/closed", "Permission denied")


@pytest.mark.parametrize("closed", [".", "train", "val"])
def test_a_data_set_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    (folder / "test").rename(folder / "val")
    real = os.listdir

    def listdir(path: str | Path) -> object:  # what Path.iterdir calls
        if Path(path) == folder / closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(DataError, match=re.escape(f"{folder / closed} cannot be read (Permission denied)")):
        load_held_out(folder, 16, ("cat", "dog")) if closed == "val" else load_dataset(folder, 16)


def test_links_to_folders_within_a_class_are_named(folder: Path) -> None:
    (folder / "train" / "cat" / "more").symlink_to(folder / "train" / "dog")
    [unread] = load_dataset(folder, 16).findings.unread
    assert (str(unread.path), unread.reason) == ("train/cat/more", "a link to a folder")


def test_an_empty_class_of_the_test_set_is_like_none(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "dog")
    (folder / "test" / "dog").mkdir()
    test = load_dataset(folder, 16).test
    assert test is not None
    assert test.labels.tolist() == [0, 0, 0]
    shutil.rmtree(folder / "test" / "cat")
    assert refusal(folder) == f"{folder / 'test'} contains no image"


def test_names_that_a_terminal_would_obey_are_made_harmless(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train" / "dog" / "a\x1b[2Jb.jpg").write_bytes(b"")
    load_dataset(folder, 16)
    assert "train/dog/a?[2Jb.jpg: " in caplog.text
    assert "\x1b" not in caplog.text


def test_other_files_are_counted_by_their_extension(folder: Path) -> None:
    for number in range(3):
        (folder / "train" / "dog" / f"IMG_{number}.HEIC").write_bytes(b"ftypheic")
    (folder / "train" / "dog" / "LICENSE").write_text("")
    (folder / "train" / "dog" / ".hidden").write_text("")
    assert load_dataset(folder, 16).findings.others == {".heic": 3, "LICENSE": 1}


def test_the_smallest_and_the_largest_image_are_known(folder: Path) -> None:
    picture(7, (300, 200)).save(folder / "test" / "dog" / "large.png")
    assert load_dataset(folder, 16).findings.sizes == ((12, 8), (300, 200))


# --- folders within folders --------------------------------------------------------------------------------------


def test_folders_within_a_class_are_read(folder: Path) -> None:
    deep = folder / "train" / "cat" / "2019" / "may"
    deep.mkdir(parents=True)
    picture(50).save(deep / "tom.png")
    (folder / "train" / "cat" / ".trash").mkdir()
    picture(51).save(folder / "train" / "cat" / ".trash" / "old.png")
    data = load_dataset(folder, 8)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.findings.nested == (Path("train/cat/2019/may"),)


def test_a_data_set_within_a_folder_is_named(folder: Path) -> None:
    assert f"{folder} is one" in refusal(folder.parent)


def test_classes_without_a_train_folder_are_named(folder: Path) -> None:
    message = refusal(folder / "train")
    assert f"its folders cat, dog look like classes: move them into {folder / 'train' / 'train'}" in message


def test_ones_own_images_may_be_larger_than_what_a_server_takes(folder: Path) -> None:
    Image.new("1", (8000, 5000)).save(folder / "train" / "cat" / "poster.png")
    assert len(load_dataset(folder, 8).train) == 7


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_named(folder: Path, split: str) -> None:
    shutil.copytree(folder / "train", folder / "val")
    shutil.rmtree(folder / split / "dog")
    (folder / split / "dog").mkdir()
    assert refusal(folder) == f"{folder / split / 'dog'} contains no image"


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
    assert refusal(folder) == f"{folder / split} has classes that train/ lacks: hound"


@pytest.mark.parametrize("split", ["val", "audit"])
def test_a_class_that_one_split_lacks(folder: Path, split: str) -> None:
    shutil.copytree(folder / "train", folder / split)
    shutil.copytree(folder / "train" / "dog", folder / "train" / "fox")
    message = refusal(folder)
    assert str(folder / split) in message
    assert message.endswith(": fox")


def test_test_images_may_be_of_one_class(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "cat")
    data = load_dataset(folder, 8)
    assert data.classes == ("cat", "dog")
    assert data.test is not None
    assert data.test.labels.tolist() == [1, 1, 1]
    shutil.rmtree(folder / "test" / "dog")
    message = refusal(folder)
    assert str(folder / "test") in message
    assert "at least 1" in message


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
