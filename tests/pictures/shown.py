"""What the corpus is made of."""

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Numbers = NDArray[Any]
WIDTH, HEIGHT = 21, 13
"""Neither is a multiple of 8."""
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
SMOOTH = np.stack([COLUMNS * 12, ROWS * 21, 255 - 6 * (ROWS + COLUMNS), 40 + COLUMNS * 10], axis=2).astype(np.uint8)
"""RGBA which lossy formats keep; no two corners look alike."""
UPRIGHT: dict[int, Callable[[Numbers], Numbers]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""How the stored pixels are turned, by EXIF orientation."""


class Shown(NamedTuple):
    """A file, and the RGB pixels [height, width, 3] that it shows over white; `loss`: how far from them it may be, in
    levels, in the mean. `browser`: why Chromium shows something else."""

    data: bytes
    pixels: Numbers
    loss: float = 0
    browser: str = ""


def over_white(rgba: Numbers) -> Numbers:
    """Of any numbers 0-255, as real numbers."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def encode(pixels: Numbers | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """An EXIF block that tells an orientation alone."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "HHHIHHI", 1, 0x0112, kind, count, orientation, 0, 0)


def packed(samples: Numbers, depth: int) -> list[bytes]:
    """Rows of samples [height, width, channels], each filled to whole bytes; the first sample in the highest bits."""
    places = np.arange(depth - 1, -1, -1)
    bits = (samples.reshape(len(samples), -1, 1) >> places & 1).astype(np.uint8).reshape(len(samples), -1)
    return [np.packbits(row).tobytes() for row in bits]
