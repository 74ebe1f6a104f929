"""From the header of an image: what decoding it will be, before any of it is done."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msmlp.model.errors import ImageTooLargeError
from msmlp.model.plain import plain_format
from msmlp.model.preprocess import decode_opened, load_image, open_image, reduce_scale, to_square

Source = bytes | NDArray[np.uint8]
"""An encoded image, or its pixels uint8 [H, W, 3]."""
Pixels = NDArray[np.uint8]

ENTROPY = 0.1
"""Work to read the coefficients of a JPEG's pixel, at whatever scale it is then decoded; in decoded pixels."""
SCAN_MARKER = b"\xff\xda"
PER_SCAN = 1 / 64
"""Work of every further scan of a progressive JPEG, which goes through all coefficients again."""

WEBP_PIXELS = 2**14
"""A larger WebP is opened again to be decoded: opened, it has the memory for its pixels already."""


class Picture(NamedTuple):
    """An image whose header was read: its kind (cost.KINDS), the pixels to be decoded, the work that they are worth in
    pixels, and what decodes it to uint8 [size, size, 3] or raises ImageError."""

    kind: str
    pixels: int
    work: float
    decode: Callable[[], Pixels]


def read_header(source: Source, size: int, max_pixels: int) -> Picture:
    """What decoding an image to `size` will be; ImageError for a header that is refused."""
    if isinstance(source, np.ndarray):
        pixels = source.shape[0] * source.shape[1]
        return Picture("pixels", pixels, pixels, partial(_resize, source, size))
    if size * size <= max_pixels and (plain := plain_format(source, size)):
        return Picture(plain, size * size, size * size, partial(load_image, source, size, max_pixels=max_pixels))
    image = open_image(source, max_pixels=max_pixels)
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    full = image.width * image.height
    if kind == "WEBP" and full > WEBP_PIXELS:
        return Picture(kind, full, full, partial(load_image, source, size, max_pixels=max_pixels))
    if kind != "JPEG":
        return Picture(kind, full, full, partial(decode_to_square, image, size))
    reduce_scale(image, size)
    scans = source.count(SCAN_MARKER) if image.info.get("progressive") else 1
    pixels = image.width * image.height
    work = pixels + full * (ENTROPY + PER_SCAN * (scans - 1))
    if work > 2 * max_pixels:
        text = f"image has {scans} scans, as much work as {work:.0f} pixels, the limit is {2 * max_pixels}"
        raise ImageTooLargeError(text)
    return Picture(kind, pixels, work, partial(decode_to_square, image, size))


def decode_to_square(image: Image.Image, size: int) -> Pixels:
    return to_square(decode_opened(image), size)


def _resize(pixels: Pixels, size: int) -> Pixels:
    return to_square(Image.fromarray(pixels), size)
