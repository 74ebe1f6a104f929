"""The official CIFAR-10 and CIFAR-100 python layouts: a folder of pickles, or the `.tar.gz` as it is downloaded.

Pickles can run code, so the unpickler here accepts nothing but the numpy arrays that the files contain.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.data.dataset import Dataset, Split, image_identity
from msmlp.model.errors import DataError
from msmlp.model.views import Views

SIDE = 32
_ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

Reader = Callable[[str], bytes]
"""A file's name inside the layout → its bytes; KeyError if it does not exist."""


class _CifarUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"a CIFAR file does not contain {module}.{name}")
        return super().find_class(module, name)


def load_cifar(path: Path, views: Views) -> Dataset | None:
    """Read a CIFAR folder, a folder that contains one, or a `.tar.gz`; None if `path` is something else."""
    if path.is_file():
        return _load_archive(path, views)
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-100-python"):
        names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if {"batches.meta", "data_batch_1"} <= names or ({"meta", "train"} <= names and (folder / "train").is_file()):
            return _read(_folder_reader(folder), names, folder, views)
    return None


def _load_archive(path: Path, views: Views) -> Dataset | None:
    try:
        if not tarfile.is_tarfile(path):
            return None
        with tarfile.open(path) as archive:
            members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
            # tar does not read the end of a compressed file, which holds the checksum.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass
            return _read(lambda name: _extract(archive, members[name]), set(members), path, views)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is a damaged archive ({error}); download it again") from None


def _folder_reader(folder: Path) -> Reader:
    return lambda name: (folder / name).read_bytes()


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _read(read: Reader, names: set[str], path: Path, views: Views) -> Dataset:
    if "batches.meta" in names:
        meta, key = "batches.meta", "labels"
        train = sorted(n for n in names if n.startswith("data_batch_"))
        test, label_names = ["test_batch"], "label_names"
    elif "meta" in names:
        meta, key, train, test, label_names = "meta", "fine_labels", ["train"], ["test"], "fine_label_names"
    else:
        raise DataError(f"{path} is an archive, but contains neither CIFAR-10 nor CIFAR-100")
    if not train:
        raise DataError(f"{path} contains no data_batch_1, data_batch_2, ...")
    names_of_classes = _unpickle(read, meta, path).get(label_names)
    if not isinstance(names_of_classes, list):
        raise DataError(f"{path / meta}: {label_names} is missing or not a list")
    classes = tuple(_text(name) for name in names_of_classes)
    if len(classes) < 2:
        raise DataError(f"{path} has {len(classes)} class(es), a classifier needs at least 2")
    return Dataset(
        classes,
        _split(read, train, key, len(classes), path, views),
        None,
        _split(read, test, key, len(classes), path, views) if set(test) <= names else None,
        "CIFAR-10 (python)" if key == "labels" else "CIFAR-100 (python)",
    )


def _split(read: Reader, files: list[str], key: str, classes: int, path: Path, views: Views) -> Split:
    rows: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for name in files:
        part = _unpickle(read, name, path)
        try:
            data = np.asarray(part["data"])
            rows.append(data.reshape(len(data), 3, SIDE, SIDE).astype(np.uint8, casting="equiv"))
            labels += [int(label) for label in part[key]]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path / name}: not a CIFAR batch ({error})") from None
    pixels = np.ascontiguousarray(np.concatenate(rows).transpose(0, 2, 3, 1))
    truth = np.array(labels, dtype=np.int64)
    if len(truth) != len(pixels) or truth.min(initial=0) < 0 or truth.max(initial=0) >= classes:
        raise DataError(f"{path}: the labels do not fit the images or the {classes} classes")
    empty = sorted(set(range(classes)) - set(truth.tolist()))
    if empty:
        raise DataError(f"{path}: class {empty[0]} has no image in {', '.join(files)}")
    identities = np.stack([image_identity(image) for image in pixels])
    if views.plain != SIDE:
        pixels = np.stack([views.pixels(Image.fromarray(image)) for image in pixels])
    return Split(pixels, truth, identities)


def _unpickle(read: Reader, name: str, path: Path) -> dict[str, Any]:
    try:
        content = _CifarUnpickler(io.BytesIO(read(name)), encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except KeyError:
        raise DataError(f"{path}: {name} is missing") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path / name}: not a readable CIFAR pickle ({error})") from None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
