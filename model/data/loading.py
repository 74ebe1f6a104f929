"""Reads a data set of any kind: CIFAR as published, or an image folder.

An image folder has `train/<class>/*`, and may have `val/<class>/*`, `audit/<class>/*` and `test/<class>/*`, with images
of any size, also in folders within a class.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.data.cifar import load_cifar
from msmlp.model.data.dataset import Dataset, Findings, Split, Unread, image_identity
from msmlp.model.errors import DataError, ImageError
from msmlp.model.preprocess import PILLOW_MAX_PIXELS, decode
from msmlp.model.views import Target, Views, views_of

SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""Of all pictures that Pillow knows: one of a format that is not served is named as unread. Other files are counted."""
MOST_NAMED = 20
"""Unread images that a warning names for each reason."""

log = logging.getLogger(__name__)


def load_dataset(path: Path, target: Target, *, strict: bool = False) -> Dataset:
    """Read an image folder, a CIFAR python folder or its `.tar.gz`, with images resized for `target`.

    Images that cannot be read are left out, and a warning names them all; with `strict` they are an error.

    Raises:
        DataError: names the path and what is wrong with it.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    views = views_of(target)
    dataset = load_cifar(path, views)
    if dataset is not None:
        return dataset
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a CIFAR .tar.gz")
    if not (path / "train").is_dir():
        raise DataError(f"{path} is not a data set: {_found_instead(path)}")
    dataset = _load_folder(path, views)
    _tell_unread(path, dataset.findings.unread, strict=strict)
    return dataset


def load_held_out(path: Path, target: Target, classes: tuple[str, ...]) -> Dataset:
    """Pictures of some of the `classes` for networks that were trained elsewhere: a folder of `<class>/*` or
    `val/<class>/*`, and `test/<class>/*` where there is one. Of what they were trained on nothing is known: `train` is
    empty.

    Raises:
        DataError: names the path and what is wrong with it.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected <class>/* or val/<class>/*")
    reader = _Reader(path, views_of(target))
    val = reader.some("val" if (path / "val").is_dir() else ".", classes)
    test = reader.some("test", classes) if (path / "val").is_dir() and (path / "test").is_dir() else None
    _tell_unread(path, tuple(reader.unread), strict=False)
    return Dataset(classes, val.take(np.arange(0)), val, test, f"image folder {path.name}", findings=reader.findings())


def _found_instead(path: Path) -> str:
    """What a folder without train/ has, and what to do."""
    expected = "expected train/<class>/*, cifar-10-batches-py/, cifar-100-python/ or a .tar.gz"
    inner = sorted(each.parent for each in path.glob("*/train") if each.is_dir())
    if inner:
        return f"{expected}; {inner[0]} is one"
    classes = [each.name for each in _visible(path) if any(is_image(file) for file in each.iterdir())]
    if classes:
        return f"{expected}; its folders {', '.join(classes[:5])} look like classes: move them into {path / 'train'}"
    return expected


def _tell_unread(path: Path, unread: tuple[Unread, ...], *, strict: bool) -> None:
    if not unread:
        return
    reasons: dict[str, list[str]] = {}
    for each in unread:
        reasons.setdefault(each.reason, []).append(str(each.path))
    named = [f"{', '.join(names[:MOST_NAMED])}{_more(names)}: {reason}" for reason, names in reasons.items()]
    count = f"{len(unread)} image{'s' if len(unread) > 1 else ''} of {path} cannot be read"
    if strict:
        raise DataError(f"{count}: {'; '.join(named)}")
    log.warning("warning: %s and %s left out:\n  %s", count, "are" if len(unread) > 1 else "is", "\n  ".join(named))


def _more(names: list[str]) -> str:
    return f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""


def _load_folder(root: Path, views: Views) -> Dataset:
    classes = _class_names(root / "train")
    reader = _Reader(root, views)
    train = reader.split("train", classes)
    others = {
        name: reader.split(name, classes, some=name == "test") if (root / name).is_dir() else None
        for name in ("val", "test", "audit")
    }
    source = f"image folder {root.name}"
    return Dataset(classes, train, others["val"], others["test"], source, others["audit"], reader.findings())


def _class_names(folder: Path, fewest: int = 2) -> tuple[str, ...]:
    names = tuple(path.name for path in _visible(folder))
    if len(names) < fewest:
        raise DataError(f"{folder} has {len(names)} class folder(s), expected at least {fewest}")
    return names


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


@dataclass
class _Reader:
    """Reads the splits of the folder `root`, and notes what else it meets."""

    root: Path
    views: Views
    unread: list[Unread] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    nested: list[Path] = field(default_factory=list)

    def findings(self) -> Findings:
        sizes = sorted(self.sizes, key=lambda size: size[0] * size[1])
        nested = tuple(sorted(set(self.nested)))
        return Findings(tuple(self.unread), dict(self.others), (sizes[0], sizes[-1]) if sizes else None, nested)

    def split(self, name: str, classes: tuple[str, ...], *, some: bool = False) -> Split:
        """The images of all `classes`, or of `some` of them: at least one, and no other."""
        folder = self.root / name
        found = _class_names(folder, 1 if some else 2)
        odd = sorted(set(found) - set(classes) if some else set(found) ^ set(classes))
        if odd:
            raise DataError(f"{folder} and its train/ have different classes: {', '.join(odd[:5])}")
        return self._labelled({folder / each: label for label, each in enumerate(classes) if each in found})

    def some(self, name: str, classes: tuple[str, ...]) -> Split:
        """Of some classes only, whose names may stand in any order."""
        folders = {each: each.name for each in _visible(self.root / name)}
        odd = [found for found in folders.values() if classes.count(found) != 1]
        if odd or not folders:
            what = f"a folder {odd[0]}" if odd else "no folder"
            said = "which several classes have as their name" if odd and odd[0] in classes else "which is no class"
            named = ", ".join(classes[:3])
            raise DataError(
                f"{self.root / name} has {what}{', ' + said if odd else ''}; expected <class>/*: {named}, ..."
            )
        return self._labelled({folder: classes.index(each) for folder, each in folders.items()})

    def _labelled(self, folders: dict[Path, int]) -> Split:
        pixels, labels, identities = [], [], []
        for folder, label in folders.items():
            before = len(self.unread)
            for image, identity in self._images(folder):
                pixels.append(image)
                labels.append(label)
                identities.append(identity)
            if label not in labels[-1:]:
                raise DataError(f"{folder} contains no image{self._instead(self.unread[before:])}")
        return Split(np.stack(pixels), np.array(labels, dtype=np.int64), np.stack(identities))

    def _instead(self, unread: list[Unread]) -> str:
        if not unread:
            return ""
        return f" that can be read; of {len(unread)} that cannot the first is {unread[0].path}: {unread[0].reason}"

    def _images(self, folder: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Pixels and identity of every image in a class's folder that can be read."""
        for path in self._files(folder):
            try:
                data = path.read_bytes()
                image = decode(data, max_pixels=PILLOW_MAX_PIXELS)
                # Serving decodes a large JPEG at a reduced scale; the network must see the same pixels here.
                seen = decode(data, near=self.views.near, max_pixels=PILLOW_MAX_PIXELS)
            except ImageError as error:
                self.unread.append(Unread(path.relative_to(self.root), str(error)))
            except OSError as error:
                self.unread.append(Unread(path.relative_to(self.root), error.strerror or str(error)))
            else:
                self.sizes.add(image.size)
                yield self.views.pixels(seen), image_identity(np.asarray(image))

    def _files(self, folder: Path) -> Iterator[Path]:
        """What has the name of an image, in order; the folder's own first, then those of the folders in it."""
        for where, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(where, name) for name in sorted(names)):
                if is_image(path):
                    if path.parent != folder:
                        self.nested.append(path.parent.relative_to(self.root))
                    yield path
                elif not path.name.startswith("."):
                    self.others[path.suffix.lower() or path.name] += 1


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image, and is no folder or pipe: reading a pipe could wait forever."""
    # Hidden files are not the user's: macOS adds a ._cat.jpg for every cat.jpg of an archive.
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and not path.is_dir() and not path.is_fifo()
