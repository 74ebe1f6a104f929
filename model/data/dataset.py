"""A data set in memory, and the images that training holds out: the validation set, and the audit set.

Validation images choose temperatures, thresholds and whatever a person tunes. Audit images choose nothing, and show how
far the expected accuracies hold on new images.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msmlp.model.errors import DataError

FRACTION = 0.1
"""Of each class, for the validation set and for the audit set."""
FEWEST_AUDITED = 100
"""With fewer, an accuracy of 90 % has a standard error above 3 points."""


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
class Partition:
    """What a run trains on and what it holds out; `no_audit` says why there is no audit set."""

    training: Split
    validation: Split
    audit: Split | None
    no_audit: str | None = None

    @property
    def digests(self) -> tuple[str, str | None]:
        """Of the validation and the audit set."""
        return split_digest(self.validation), None if self.audit is None else split_digest(self.audit)


@dataclass(frozen=True)
class Unread:
    """An image that cannot be read: its path in the data set's folder, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Findings:
    """What an image folder has besides the images that are used."""

    unread: tuple[Unread, ...] = ()
    others: dict[str, int] = field(default_factory=dict)
    """How many files of each extension are not images by their names."""
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Width and height of the smallest and the largest image."""
    nested: tuple[Path, ...] = ()
    """Folders within a class's folder of which images were read."""
    unused: tuple[str, ...] = ()
    """What is where nothing is expected: folders beside the splits, images beside the classes."""


@dataclass(frozen=True)
class Dataset:
    """Class names in label order, and the splits found; `val` and `audit` only if the data set has its own."""

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    source: str
    audit: Split | None = None
    findings: Findings = field(default_factory=Findings)

    def partition(self, seed: int) -> Partition:
        """The data set's own validation and audit sets, else a tenth of every class of `train` for each.

        No audit set is drawn from few images, where it would cost training more than it tells, or where the data set
        has its own `val`: its owner has decided what is trained on.
        """
        if self.val is not None:
            own = "the data has its own val/ and no audit/" if self.audit is None else None
            return Partition(self.train, self.val, self.audit, own)
        held = validation_mask(self.train, seed, fraction=FRACTION)
        for label, name in enumerate(self.classes):
            if held[self.train.labels == label].all():
                raise DataError(
                    f"{self.source}: class {name} needs at least 2 different images, one of them for validation"
                )
        training, validation = self.train.take(~held), self.train.take(held)
        if self.audit is not None:
            return Partition(training, validation, self.audit)
        audit = audit_mask(self.train, seed, fraction=FRACTION, taken=held)
        if audit.sum() < FEWEST_AUDITED:
            few = f"a tenth of each class is {audit.sum()} of {len(self.train)} images; {FEWEST_AUDITED} are needed"
            return Partition(training, validation, None, few)
        return Partition(self.train.take(~held & ~audit), validation, self.train.take(audit))


def image_identity(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The sha256 of an image's decoded RGB pixels [H, W, 3], as uint8 [32]."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest(), dtype=np.uint8)


def validation_mask(split: Split, seed: int, fraction: float) -> NDArray[np.bool_]:
    """Which images are held out: in each class the lowest ranks of sha256(seed ‖ identity), at least one.

    The rank depends on pixels and seed alone, so every layout of a data set gives the same images. Duplicates within a
    class share a rank, so no validation image is also trained on.
    """
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        held[members] = _lowest(split.identities[members], str(seed), max(1, round(len(members) * fraction)))
    return held


def audit_mask(split: Split, seed: int, fraction: float, taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the images that are not `taken` [N] form the audit set; drawn like validation images, by other ranks.

    A class with too few images to keep some for training contributes none.
    """
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero((split.labels == label) & ~taken)
        chosen = _lowest(split.identities[members], f"audit {seed}", round((split.labels == label).sum() * fraction))
        held[members] = chosen & (not chosen.all())
    return held


def _lowest(identities: NDArray[np.uint8], key: str, count: int) -> NDArray[np.bool_]:
    """The `count` lowest ranks of sha256(key ‖ identity) among images [N], with all that share the last of them."""
    prefix = key.encode() + b"\x00"
    ranks = [hashlib.sha256(prefix + identity.tobytes()).digest() for identity in identities]
    lowest = set(sorted(ranks)[:count])
    return np.array([rank in lowest for rank in ranks], dtype=bool)


def shared(split: Split, other: Split) -> int:
    """How many images of `split` are in `other` as well."""
    known = {identity.tobytes() for identity in other.identities}
    return sum(identity.tobytes() in known for identity in split.identities)


def split_digest(split: Split) -> str:
    """A sha256 of the images and labels that does not depend on their order."""
    rows = sorted(
        int(label).to_bytes(4, "little") + identity.tobytes()
        for label, identity in zip(split.labels, split.identities, strict=True)
    )
    return hashlib.sha256(b"".join(rows)).hexdigest()
