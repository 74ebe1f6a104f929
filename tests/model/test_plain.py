"""What is plain decodes as by Pillow's readers; everything else is left to them."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from msmlp.model.plain import plain_image
from msmlp.model.preprocess import decode

SIZE = 32
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
NOTE = PngImagePlugin.PngInfo()
NOTE.add_text("a", "note")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(data: bytes, size: int = SIZE, max_pixels: int = 10_000) -> Image.Image | None:
    return plain_image(data, size, max_pixels=max_pixels)


PLAIN = {
    "PNG": encode(PICTURE, "PNG"),
    "PNG, stored": encode(PICTURE, "PNG", compress_level=0),
    "JPEG": encode(PICTURE, "JPEG"),
    "JPEG, own Huffman tables": encode(PICTURE, "JPEG", optimize=True),
    "JPEG, full colour": encode(PICTURE, "JPEG", quality=95, subsampling=0),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_a_plain_picture_has_the_readers_pixels(data: bytes) -> None:
    image = plain(data)
    assert image is not None
    assert np.array_equal(np.asarray(image), np.asarray(decode(data)))


@pytest.mark.parametrize(
    "data",
    [
        encode(PICTURE.resize((SIZE, SIZE + 1)), "PNG"),
        encode(PICTURE.convert("L"), "PNG"),
        encode(PICTURE.convert("RGBA"), "PNG"),
        encode(PICTURE, "PNG", pnginfo=NOTE),
        encode(PICTURE, "PNG", exif=TURNED),
        encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(90)]),
        encode(PICTURE.resize((SIZE + 1, SIZE)), "JPEG"),
        encode(PICTURE.convert("L"), "JPEG"),
        encode(PICTURE.convert("CMYK"), "JPEG"),
        encode(PICTURE, "JPEG", progressive=True),
        encode(PICTURE, "JPEG", exif=TURNED),
        encode(PICTURE, "WEBP"),
        PLAIN["PNG"][:-20],
        PLAIN["JPEG"][:-20],
        b"",
    ],
)
def test_anything_else_is_left_to_the_readers(data: bytes) -> None:
    assert plain(data) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_limit_below_the_size_is_left_to_the_readers(kind: str) -> None:
    assert plain(PLAIN[kind], max_pixels=SIZE * SIZE) is not None
    assert plain(PLAIN[kind], max_pixels=SIZE * SIZE - 1) is None


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_a_damaged_file_is_never_more_readable_than_by_the_readers(data: bytes) -> None:
    """One byte changed, anywhere in the header and at some places behind it."""
    accepted = 0
    for place in [*range(700), *range(700, len(data), 37), *range(len(data) - 20, len(data))]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        if image := plain(bytes(damaged)):
            accepted += 1
            assert np.array_equal(np.asarray(image), np.asarray(decode(bytes(damaged)))), place
    assert accepted, "nothing was compared"
