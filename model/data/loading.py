"""Reads a data set of any kind: CIFAR as published, or an image folder.

An image folder has `train/<class>/*`, and may have `val/<class>/*`, `audit/<class>/*` and `test/<class>/*`, with images
of any size.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from msmlp.model.data.cifar import load_cifar
from msmlp.model.data.dataset import Dataset, Split, image_identity
from msmlp.model.errors import DataError, ImageError
from msmlp.model.preprocess import PILLOW_MAX_PIXELS, decode, to_square

SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""Of all pictures that Pillow knows: one of a format that is not served stops a training, in words. Other files are
ignored."""


def load_dataset(path: Path, size: int) -> Dataset:
    """Read an image folder, a CIFAR python folder or its `.tar.gz`, with images resized to `size`; DataError names the
    path and what is wrong with it."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    dataset = load_cifar(path, size)
    if dataset is not None:
        return dataset
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a CIFAR .tar.gz")
    if not (path / "train").is_dir():
        raise DataError(
            f"{path} is not a data set; expected train/<class>/*, cifar-10-batches-py/, cifar-100-python/ or a .tar.gz"
        )
    return _load_folder(path, size)


def _load_folder(root: Path, size: int) -> Dataset:
    classes = _class_names(root / "train")
    train = _read_split(root / "train", classes, size)
    others = {
        name: _read_split(root / name, classes, size) if (root / name).is_dir() else None
        for name in ("val", "test", "audit")
    }
    return Dataset(classes, train, others["val"], others["test"], f"image folder {root.name}", others["audit"])


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folder(s), a classifier needs at least 2")
    return names


def _read_split(folder: Path, classes: tuple[str, ...], size: int) -> Split:
    found = _class_names(folder)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(f"{folder} and its train/ have different classes: {', '.join(odd[:5])}")
    pixels, labels, identities = [], [], []
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).iterdir() if is_image(p))
        if not files:
            raise DataError(f"{folder / name} contains no image")
        for path in files:
            try:
                data = path.read_bytes()
                image = decode(data, max_pixels=PILLOW_MAX_PIXELS)
                # Serving decodes a large JPEG at a reduced scale; the network must see the same pixels here.
                seen = decode(data, near=size, max_pixels=PILLOW_MAX_PIXELS)
            except (ImageError, OSError) as error:
                raise DataError(f"{path}: {error}") from None
            identities.append(image_identity(np.asarray(image)))
            pixels.append(to_square(seen, size))
            labels.append(label)
    return Split(np.stack(pixels), np.array(labels, dtype=np.int64), np.stack(identities))


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image, and is no folder or pipe: reading a pipe could wait forever."""
    # Hidden files are not the user's: macOS adds a ._cat.jpg for every cat.jpg of an archive.
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and not path.is_dir() and not path.is_fifo()
