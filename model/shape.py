"""What serving asks of a cascade, of whatever kind: its numbers, and no more."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod


@dataclass(frozen=True)
class CascadeShape:
    """K stages with `classes` outputs each.

    Attributes:
        views: the sides of the squares that an image is scaled to, each for some of the stages.
        reads: the view that each stage reads, [K]; None for one that reads upstream features alone.
        features: the shape of what each stage leaves in an image's slot for the next one, [K]; None for nothing.
    """

    classes: int
    views: tuple[int, ...]
    reads: tuple[int | None, ...]
    features: tuple[tuple[int, ...] | None, ...]

    @property
    def stages(self) -> int:
        return len(self.reads)

    @property
    def image(self) -> tuple[int, ...]:
        return image_shape(self.views)

    def slot_bytes(self, itemsize: int) -> int:
        """The size of an image and its features at every stage boundary, with `itemsize` bytes per number."""
        return prod(self.image) + itemsize * sum(prod(each) for each in self.features if each is not None)


def image_shape(views: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one image's pixels: [size, size, 3]; of several views one row, in which they follow one another."""
    return (views[0], views[0], 3) if len(views) == 1 else (3 * sum(size**2 for size in views),)


def parts(views: tuple[int, ...]) -> list[slice]:
    """Where each view lies in the row of several."""
    return [slice(*ends) for ends in pairwise(accumulate((3 * size**2 for size in views), initial=0))]
