"""From the header of an image: what decoding it will be, before any of it is done."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from msmlp.model.avif import PIXELS
from msmlp.model.bmp import is_odd_bmp
from msmlp.model.colour_key import KEY
from msmlp.model.errors import ImageTooLargeError
from msmlp.model.plain import plain_format
from msmlp.model.preprocess import ENTROPY, JPEG_SCAN, decode_opened, load_image, open_image, reduce_scale
from msmlp.model.profiles import PROFILE, WORK, is_known
from msmlp.model.unended import DECODINGS, UNENDED
from msmlp.model.views import Target, Views, views_of

Source = bytes | NDArray[np.uint8]
"""An encoded image, or its pixels uint8 [H, W, 3]."""
Pixels = NDArray[np.uint8]

PER_SCAN = 1 / 64
"""Work of every further scan, progressive or not, which goes through all coefficients again, even without any bytes."""
RUN_PIXEL, RUN_BYTE = 4, 22
"""Work of each pixel and each byte of a run-length-encoded BMP: that decoder is a loop in Python."""
ODD_PIXEL = 2
"""Work of each pixel of a BMP of which Pillow does not know the colours."""

WEBP_PIXELS, LONG = 2**14, 2**18
"""A larger WebP is opened again to be decoded: opened, it has the memory for its pixels already. So is a longer file of
any kind: opened, it may be a copy without metadata. AVIFs are always opened again: once opened, their items take many
times the file's size."""


class Picture(NamedTuple):
    """An image whose header was read: its kind (cost.KINDS), the pixels to be decoded, the work that they are worth in
    pixels, and what decodes it to the target's pixels or raises ImageError."""

    kind: str
    pixels: int
    work: float
    decode: Callable[[], Pixels]
    reduced_from: int = 0
    """The pixels of a JPEG, which may be decoded at a reduced scale."""

    @property
    def full(self) -> int:
        """Width x height."""
        return self.reduced_from or self.pixels


def read_header(source: Source, target: Target, max_pixels: int) -> Picture:
    """What decoding an image for `target` will be; ImageError for a header that is refused."""
    views = views_of(target)
    if isinstance(source, np.ndarray):
        pixels = source.shape[0] * source.shape[1]
        return Picture("pixels", pixels, pixels, partial(_resize, source, views))
    size = views.plain
    if size and size * size <= max_pixels and (plain := plain_format(source, size)):
        return Picture(plain, size * size, size * size, partial(load_image, source, views, max_pixels=max_pixels))
    image = open_image(source, max_pixels=max_pixels, near=views.near)
    picture = _predict(image, source, views, max_pixels)
    unprepared = PROFILE in image.info and not is_known(image.info[PROFILE])
    return picture._replace(work=picture.work + WORK) if unprepared else picture


def _predict(image: ImageFile.ImageFile, source: bytes, views: Views, max_pixels: int) -> Picture:
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    full = image.width * image.height
    again = len(source) > LONG or kind == "AVIF" or (kind == "WEBP" and full > WEBP_PIXELS)
    decode = (
        partial(load_image, source, views, max_pixels=max_pixels) if again else partial(_decode_opened, image, views)
    )
    if kind == "BMP" and image.info.get("compression") in (1, 2):
        return Picture(kind, full, RUN_PIXEL * full + RUN_BYTE * len(source), decode)
    if kind == "AVIF":
        return Picture(kind, full, max(full, image.info[PIXELS]), decode)
    if is_odd_bmp(image):
        return Picture(kind, full, ODD_PIXEL * full, decode)
    if kind != "JPEG":
        return Picture(kind, full, 2 * full if KEY in image.info else full, decode)
    reduce_scale(image, views.near)
    scans = max(1, sum(1 for _ in JPEG_SCAN.finditer(source)))
    pixels = image.width * image.height
    work = pixels + full * (ENTROPY + PER_SCAN * (scans - 1))
    if work > 2 * max_pixels:
        text = f"image has {scans} scans, as much work as {work:.0f} pixels, the limit is {2 * max_pixels}"
        raise ImageTooLargeError(text)
    return Picture(kind, pixels, DECODINGS * work if UNENDED in image.info else work, decode, full)


def _decode_opened(image: ImageFile.ImageFile, views: Views) -> Pixels:
    return views.pixels(decode_opened(image))


def _resize(pixels: Pixels, views: Views) -> Pixels:
    return views.pixels(Image.fromarray(pixels))
