"""The official CIFAR layouts, and that no pickle runs code."""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msmlp.model.data import load_dataset
from msmlp.model.data.dataset import split_digest
from msmlp.model.errors import DataError

Pickled = Callable[[Any], bytes]


def layout(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        load_dataset(path, 32)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


# --- the same images from every layout ---------------------------------------------------------------------------


@pytest.fixture(params=["cifar10_folder", "cifar10_archive", "cifar100_folder"])
def elsewhere(request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


@pytest.mark.parametrize("size", [32, 16])
def test_every_layout_holds_the_images_of_the_folder(digits_folder: Path, elsewhere: Path, size: int) -> None:
    ours, theirs = load_dataset(digits_folder, size), load_dataset(elsewhere, size)
    assert theirs.classes == ours.classes == tuple("0123456789")
    for a, b in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert a is not None
        assert b is not None
        assert split_digest(a) == split_digest(b)
        by_identity = {identity.tobytes(): image for identity, image in zip(a.identities, a.pixels, strict=True)}
        assert all(
            np.array_equal(by_identity[i.tobytes()], image) for i, image in zip(b.identities, b.pixels, strict=True)
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_every_layout_holds_out_the_same_validation_images(digits_folder: Path, elsewhere: Path, seed: int) -> None:
    ours, theirs = (load_dataset(p, 32).partition(seed).validation for p in (digits_folder, elsewhere))
    assert len(ours) == 40
    assert split_digest(ours) == split_digest(theirs)
    # It is the set that agrees, not the order it is stored in.
    if elsewhere.name != "cifar-100-python":
        assert not np.array_equal(ours.identities, theirs.identities)


def test_another_seed_holds_out_others(elsewhere: Path) -> None:
    data = load_dataset(elsewhere, 32)
    first, second = (split_digest(data.partition(seed).validation) for seed in (0, 1))
    assert first != second


def test_the_folder_that_contains_the_layout_will_do(cifar10_folder: Path, cifar100_folder: Path) -> None:
    assert "CIFAR-10 " in load_dataset(cifar10_folder.parent, 32).source
    assert "CIFAR-100 " in load_dataset(cifar100_folder.parent, 32).source


def test_cifar100_archive(cifar100_files: dict[str, bytes], tmp_path: Path) -> None:
    data = load_dataset(archive(tmp_path / "cifar-100-python.tar.gz", cifar100_files), 32)
    assert len(data.classes) == 10
    assert np.bincount(data.train.labels).tolist() == [40] * 10


def test_uncompressed_archive(cifar10_files: dict[str, bytes], tmp_path: Path) -> None:
    assert len(load_dataset(archive(tmp_path / "cifar.tar", cifar10_files, "w"), 32).train) == 400


def test_pixels_keep_their_place_and_colour(
    cifar10_files: dict[str, bytes], python2_pickle: Pickled, tmp_path: Path
) -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[0, 5] = (10, 20, 30)
    image[7, 0] = (40, 50, 60)
    rows = np.broadcast_to(image.transpose(2, 0, 1).reshape(-1), (10, 3072)).copy()
    test_batch = python2_pickle({b"data": rows, b"labels": list(range(10))})
    data = load_dataset(layout(tmp_path / "c", {**cifar10_files, "test_batch": test_batch}), 32)
    assert data.test is not None
    assert np.array_equal(data.test.pixels[4], image)


def test_pickles_rewritten_by_python_3(cifar10_files: dict[str, bytes], tmp_path: Path) -> None:
    rewritten = {
        name: pickle.dumps(pickle.loads(content, encoding="bytes"), protocol=2)
        for name, content in cifar10_files.items()
        if not name.endswith(".html")
    }
    ours, theirs = (load_dataset(layout(tmp_path / n, f), 32) for n, f in (("a", rewritten), ("b", cifar10_files)))
    assert split_digest(ours.train) == split_digest(theirs.train)


def test_without_test_images(cifar10_files: dict[str, bytes], tmp_path: Path) -> None:
    files = {name: content for name, content in cifar10_files.items() if name != "test_batch"}
    assert load_dataset(layout(tmp_path / "c", files), 32).test is None


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "archive"])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], str]:
    """`broken(files)`: the refusal of a layout of those files, as a folder and as an archive."""

    def refuse(files: dict[str, bytes]) -> str:
        if request.param == "archive":
            return refusal(archive(tmp_path / "cifar.tar.gz", files))
        return refusal(layout(tmp_path / "cifar", files))

    return refuse


def test_a_damaged_batch_is_named(broken: Callable[..., str], cifar10_files: dict[str, bytes]) -> None:
    half = cifar10_files["data_batch_2"][:1000]
    assert "data_batch_2" in broken({**cifar10_files, "data_batch_2": half})


@pytest.mark.parametrize(
    "content",
    [
        {b"labels": [0] * 10},
        {b"data": np.zeros((10, 3072), dtype=np.uint8)},
        {b"data": np.zeros((10, 3071), dtype=np.uint8), b"labels": [0] * 10},
        {b"data": np.zeros((10, 3072), dtype=np.float32), b"labels": [0] * 10},
        {b"data": np.zeros((10, 3072), dtype=np.uint8), b"labels": "many"},
        [1, 2, 3],
    ],
    ids=["no data", "no labels", "too few pixels", "no bytes", "labels no numbers", "no dictionary"],
)
def test_a_batch_that_is_none_is_named(
    content: object, broken: Callable[..., str], cifar10_files: dict[str, bytes]
) -> None:
    assert "data_batch_3" in broken({**cifar10_files, "data_batch_3": pickle.dumps(content, protocol=2)})


@pytest.mark.parametrize("labels", [[*range(9), 10], [*range(9), -1], [*range(9)], list(range(10)) * 2])
def test_labels_that_do_not_fit(
    labels: list[int], broken: Callable[..., str], cifar10_files: dict[str, bytes], python2_pickle: Pickled
) -> None:
    batch = python2_pickle({b"data": np.zeros((10, 3072), dtype=np.uint8), b"labels": labels})
    assert "labels do not fit" in broken({**cifar10_files, "test_batch": batch})


def test_a_class_without_an_image(
    broken: Callable[..., str], cifar10_files: dict[str, bytes], python2_pickle: Pickled
) -> None:
    batch = python2_pickle({b"data": np.zeros((9, 3072), dtype=np.uint8), b"labels": [0, 1, 2, 3, 5, 6, 7, 8, 9]})
    assert "class 4" in broken({**cifar10_files, "test_batch": batch})


@pytest.mark.parametrize("names", [[], [b"one"]])
def test_too_few_classes(
    names: list[bytes], broken: Callable[..., str], cifar10_files: dict[str, bytes], python2_pickle: Pickled
) -> None:
    meta = python2_pickle({b"label_names": names})
    assert "at least 2" in broken({**cifar10_files, "batches.meta": meta})


def test_names_of_classes_missing(
    broken: Callable[..., str], cifar10_files: dict[str, bytes], python2_pickle: Pickled
) -> None:
    assert "batches.meta" in broken({**cifar10_files, "batches.meta": python2_pickle({b"num_vis": 3072})})


def test_an_archive_without_batches(cifar10_files: dict[str, bytes], tmp_path: Path) -> None:
    files = {name: content for name, content in cifar10_files.items() if not name.startswith("data_batch")}
    assert "data_batch" in refusal(archive(tmp_path / "cifar.tar.gz", files))


def test_a_cifar100_archive_without_train(cifar100_files: dict[str, bytes], tmp_path: Path) -> None:
    files = {name: content for name, content in cifar100_files.items() if name != "train"}
    assert "train is missing" in refusal(archive(tmp_path / "cifar.tar.gz", files))


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    path = archive(tmp_path / "photos.tar.gz", {"train/cat/1.png": stream.getvalue()})
    assert "neither CIFAR-10 nor CIFAR-100" in refusal(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_an_archive_that_broke_off_while_downloading(cifar10_archive: Path, tmp_path: Path, share: float) -> None:
    whole = cifar10_archive.read_bytes()
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is a damaged archive" in refusal(path)


def test_a_pixel_that_changed_inside_an_archive_is_damage(cifar10_files: dict[str, bytes], tmp_path: Path) -> None:
    """Stored without compression, the archive unpacks as well as ever: only the checksum at its end can tell."""
    tar = archive(tmp_path / "cifar.tar", cifar10_files, "w").read_bytes()
    packed = bytearray(gzip.compress(tar, compresslevel=0))
    packed[packed.index(cifar10_files["data_batch_1"][-3000:-2900])] ^= 1
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(bytes(packed))
    assert "damaged archive" in refusal(path)


def test_an_error_page_saved_under_the_archives_name(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"<html>404</html>")
    assert "neither a folder nor a CIFAR .tar.gz" in refusal(path)


# --- hostile pickles ---------------------------------------------------------------------------------------------


class _Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def hostile(witness: Path) -> dict[str, bytes]:
    import os
    import subprocess

    payloads = {
        "os.system": _Calls(os.system, f"touch {witness}"),
        "subprocess": _Calls(subprocess.call, ["touch", str(witness)]),
        "eval": _Calls(eval, f"open({str(witness)!r}, 'w')"),
        "open": _Calls(open, str(witness), "w"),
        "getattr": _Calls(getattr, "", "join"),
        "numpy": _Calls(np.save, str(witness), np.zeros(1)),
    }
    made = {
        f"{name}-{protocol}": pickle.dumps({b"data": payload}, protocol=protocol)
        for name, payload in payloads.items()
        for protocol in (0, 2, 4)
    }
    # A dotted name reaches past the class that is allowed.
    made["dotted"] = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    return made


@pytest.mark.parametrize("name", hostile(Path("x")))
@pytest.mark.parametrize("target", ["batches.meta", "data_batch_1", "test_batch"])
def test_no_pickle_runs_code(name: str, target: str, cifar10_files: dict[str, bytes], tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    payload = hostile(witness)[name]
    assert "a CIFAR file does not contain" in refusal(layout(tmp_path / "cifar", {**cifar10_files, target: payload}))
    assert not witness.exists()


def test_the_payloads_are_real(tmp_path: Path) -> None:
    """Without the restriction they would do it, else the test above shows nothing."""
    witness = tmp_path / "witness"
    pickle.loads(hostile(witness)["os.system-2"])
    assert witness.exists()
