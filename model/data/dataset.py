"""A data set in memory and its validation split."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DataError


@dataclass(frozen=True)
class Split:
    """The images of one split: pixels uint8 [N, size, size, 3], labels int64 [N], identities uint8 [N, 32].

    An identity is the sha256 of the image's decoded pixels before any resizing, so it is the same in every layout.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    identities: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Split":
        return Split(self.pixels[index], self.labels[index], self.identities[index])

    def limited(self, per_class: int) -> "Split":
        keep = np.zeros(len(self), dtype=bool)
        for label in np.unique(self.labels):
            keep[np.flatnonzero(self.labels == label)[:per_class]] = True
        return self.take(keep)


@dataclass(frozen=True)
class Dataset:
    """Class names in label order, and the splits found; `val` only if the data set has its own."""

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    source: str

    def train_and_validation(self, seed: int) -> tuple[Split, Split]:
        """The training and the validation images: `val` if there is one, else a tenth of every class held out."""
        if self.val is not None:
            return self.train, self.val
        held = validation_mask(self.train, seed, fraction=0.1)
        for label, name in enumerate(self.classes):
            if held[self.train.labels == label].all():
                raise DataError(
                    f"{self.source}: class {name} needs at least 2 different images, one of them for validation"
                )
        return self.train.take(~held), self.train.take(held)


def image_identity(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The sha256 of an image's decoded RGB pixels [H, W, 3], as uint8 [32]."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest(), dtype=np.uint8)


def validation_mask(split: Split, seed: int, fraction: float) -> NDArray[np.bool_]:
    """Which images are held out: in each class the lowest ranks of sha256(seed ‖ identity), at least one.

    The rank depends on pixels and seed alone, so every layout of a data set gives the same images. Duplicates within a
    class share a rank, so no validation image is also trained on.
    """
    held = np.zeros(len(split), dtype=bool)
    prefix = str(seed).encode() + b"\x00"
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        ranks = [hashlib.sha256(prefix + split.identities[i].tobytes()).digest() for i in members]
        count = max(1, round(len(members) * fraction))
        limit = sorted(ranks)[count - 1]
        held[members] = [rank <= limit for rank in ranks]
    return held


def split_digest(split: Split) -> str:
    """A sha256 of the images and labels that does not depend on their order."""
    rows = sorted(
        int(label).to_bytes(4, "little") + identity.tobytes()
        for label, identity in zip(split.labels, split.identities, strict=True)
    )
    return hashlib.sha256(b"".join(rows)).hexdigest()
