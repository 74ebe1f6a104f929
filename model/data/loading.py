"""Reads a data set of any kind: CIFAR as published, or an image folder.

An image folder has `train/<class>/*`, and may have `val/<class>/*`, `audit/<class>/*` and `test/<class>/*`, with images
of any size, also in folders within a class.
"""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.data.cifar import load_cifar
from msmlp.model.data.dataset import Dataset, Findings, Split, Unread, image_identity
from msmlp.model.errors import DataError, ImageError
from msmlp.model.preprocess import FORMATS, PILLOW_MAX_PIXELS, decode
from msmlp.model.text import printable
from msmlp.model.views import Target, Views, views_of

SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""Of all pictures that Pillow knows: one of a format that is not served is named as unread. Other files are counted."""
SPLITS = ("train", "val", "test", "audit")
TELL_SECONDS = 10.0
"""Between two lines on how many images were read."""
MOST_NAMED = 20
"""Unread images that a warning names for each reason."""

log = logging.getLogger(__name__)


def load_dataset(path: Path, target: Target, *, strict: bool = False) -> Dataset:
    """Read an image folder, a CIFAR python folder or its `.tar.gz`, with images resized for `target`.

    Images that cannot be read are left out, and a warning names them all; with `strict` they are an error.

    Raises:
        DataError: names the path and what is wrong with it.
    """
    views = views_of(target)
    with _readable(path):
        if not path.exists():
            raise DataError(f"{path} does not exist")
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
    reader = _Reader(path, views_of(target))
    with _readable(path):
        if not path.is_dir():
            raise DataError(f"{path} is not a folder; expected <class>/* or val/<class>/*")
        val = reader.some("val" if (path / "val").is_dir() else ".", classes)
        test = reader.some("test", classes) if (path / "val").is_dir() and (path / "test").is_dir() else None
    _tell_unread(path, tuple(reader.unread), strict=False)
    return Dataset(classes, val.take(np.arange(0)), val, test, f"image folder {path.name}", findings=reader.findings())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A DataError for what the system refuses to read in `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror or error})") from None


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
        reasons.setdefault(each.reason, []).append(printable(str(each.path)))
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
    reader.unused += [f"{each.name}/" for each in _visible(root) if each.name not in SPLITS]
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
        folders = f"{len(names)} class folder{'' if len(names) == 1 else 's'}"
        raise DataError(f"{folder} has {folders}; expected at least {fewest}")
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
    unused: list[str] = field(default_factory=list)
    read: int = 0
    told: float = field(default_factory=time.monotonic)

    def findings(self) -> Findings:
        sizes = sorted(self.sizes, key=lambda size: size[0] * size[1])
        nested = tuple(sorted(set(self.nested)))
        extremes = (sizes[0], sizes[-1]) if sizes else None
        return Findings(tuple(self.unread), dict(self.others), extremes, nested, tuple(self.unused))

    def split(self, name: str, classes: tuple[str, ...], *, some: bool = False) -> Split:
        """The images of all `classes`, or of `some` of them: at least one, and no other."""
        folder = self.root / name
        found = _class_names(folder, 1 if some else 2)
        more, fewer = sorted(set(found) - set(classes)), [] if some else sorted(set(classes) - set(found))
        if more:
            raise DataError(f"{folder} has classes that train/ lacks: {', '.join(more[:5])}")
        if fewer:
            raise DataError(f"{folder} lacks classes of train/: {', '.join(fewer[:5])}")
        return self._labelled(name, {folder / each: label for label, each in enumerate(classes) if each in found}, some)

    def some(self, name: str, classes: tuple[str, ...]) -> Split:
        """Of some classes only, in any order."""
        folders = {each: each.name for each in _visible(self.root / name)}
        odd = [found for found in folders.values() if classes.count(found) != 1]
        if odd or not folders:
            what = f"a folder {odd[0]}" if odd else "no folder"
            said = "which several classes have as their name" if odd and odd[0] in classes else "which is not a class"
            named = ", ".join(classes[:3])
            raise DataError(
                f"{self.root / name} has {what}{', ' + said if odd else ''}; expected <class>/*: {named}, ..."
            )
        return self._labelled(name, {folder: classes.index(each) for folder, each in folders.items()})

    def _labelled(self, name: str, folders: dict[Path, int], some: bool = False) -> Split:
        """The images of the split `name`, of classes by their folders; with `some` a folder may be empty."""
        if loose := sum(is_image(each) for each in (self.root / name).iterdir()):
            self.unused.append(f"{loose} image{'' if loose == 1 else 's'} directly in {name}/")
        pixels, labels, identities = [], [], []
        for folder, label in folders.items():
            unread, others = len(self.unread), self.others.copy()
            for image, identity in self._images(folder):
                pixels.append(image)
                labels.append(label)
                identities.append(identity)
            if label not in labels[-1:] and not (some and len(self.unread) == unread):
                raise DataError(_no_image(folder, self.unread[unread:], self.others - others))
        if not labels:
            raise DataError(f"{self.root / name} contains no image")
        return Split(np.stack(pixels), np.array(labels, dtype=np.int64), np.stack(identities))

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
                self._count()
                self.sizes.add(image.size)
                yield self.views.pixels(seen), image_identity(np.asarray(image))

    def _count(self) -> None:
        self.read += 1
        if time.monotonic() >= self.told + TELL_SECONDS:
            self.told = time.monotonic()
            sys.stderr.write(f"reading {self.root}: {self.read} images so far\n")

    def _files(self, folder: Path) -> Iterator[Path]:
        """What has the name of an image, in order; the folder's own first, then those of the folders in it. Links to
        folders are not followed, as they may lead around in circles."""

        def closed(error: OSError) -> None:
            where = Path(error.filename or folder).relative_to(self.root)
            self.unread.append(Unread(where, error.strerror or str(error)))

        for where, folders, names in os.walk(folder, onerror=closed):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            linked = [Path(where, name) for name in folders if Path(where, name).is_symlink()]
            self.unread += [Unread(path.relative_to(self.root), "a link to a folder") for path in linked]
            for path in (Path(where, name) for name in sorted(names)):
                if is_image(path):
                    if path.parent != folder:
                        self.nested.append(path.parent.relative_to(self.root))
                    yield path
                elif not path.name.startswith("."):
                    self.others[path.suffix.lower() or path.name] += 1


def _no_image(folder: Path, unread: list[Unread], others: Counter[str]) -> str:
    """Why a class has no image."""
    if unread:
        first = f"{unread[0].path}: {unread[0].reason}"
        return f"none of the {len(unread)} images in {folder} can be read; the first: {first}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
    return f"{folder} contains no image" + (f", but {kinds}; formats: {', '.join(FORMATS)}" if kinds else "")


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image, and is no folder, pipe or device: reading those could wait forever. A
    link that leads nowhere is one, which cannot be read."""
    # Hidden files are not the user's: macOS adds a ._cat.jpg for every cat.jpg of an archive.
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or not path.exists())
