"""What is known of an image by its header."""

import io
import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msmlp.model.errors import ImageTooLargeError, UndecodableImageError
from msmlp.model.preprocess import ENTROPY, MAX_PIXELS, load_image
from msmlp.service.decoding.pictures import read_header
from msmlp.service.memory import resident_bytes

LIMIT = 1_000_000


def file(size: tuple[int, int], kind: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "JPEG", "AVIF"])
@pytest.mark.parametrize("size", [(32, 32), (100, 40), (300, 200)])
def test_format_and_pixels_are_told_and_the_picture_is_the_models_own(kind: str, size: tuple[int, int]) -> None:
    data = file(size, kind)
    picture = read_header(data, 32, LIMIT)
    reduced = 2 if kind == "JPEG" and size == (300, 200) else 1  # 200 holds twice the model's size thrice
    assert (picture.kind, picture.pixels) == (kind, size[0] * size[1] / reduced**2)
    assert (picture.decode() == load_image(data, 32)).all()


@pytest.mark.parametrize(("side", "scale"), [(127, 1), (128, 2), (255, 2), (256, 4), (512, 8), (800, 8)])
def test_a_jpeg_counts_the_pixels_that_it_is_decoded_to(side: int, scale: int) -> None:
    picture = read_header(file((side, side), "JPEG"), 32, LIMIT)
    assert picture.pixels == (-(-side // scale)) ** 2
    assert picture.work == pytest.approx(picture.pixels + ENTROPY * side**2)


def test_scans_are_work() -> None:
    plain, progressive = (read_header(file((800, 800), "JPEG", progressive=each), 32, LIMIT) for each in (False, True))
    assert plain.pixels == progressive.pixels
    assert plain.work < progressive.work < 6 * plain.work


@pytest.mark.parametrize("side", [32, 200])  # 32: plain, but for its scans
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_endless_scans_is_refused(progressive: bool, side: int) -> None:
    data = file((side, side), "JPEG", progressive=progressive)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 300 + data[-2:]
    with pytest.raises(ImageTooLargeError, match=r"image has 3\d\d scans, as much work as \d+ pixels"):
        read_header(bomb, 32, side**2 + side**2 // 4)


def test_runs_of_a_bmp_are_work() -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 32, 32, 1, 8, 1, 0, 0, 0, 256, 256) + bytes(1024)
    runs = (b"\1\7" * 32 + b"\0\0") * 32
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(runs), 0, 0, 14 + len(head)) + head + runs
    picture = read_header(data, 32, LIMIT)
    assert (picture.kind, picture.pixels, picture.decode().shape) == ("BMP", 1024, (32, 32, 3))
    assert picture.work > 10 * len(runs) + 1024


def test_what_follows_a_jpeg_is_no_scan() -> None:
    data = file((200, 200), "JPEG")
    film = np.random.default_rng(0).bytes(2**21)  # as telephones append it
    assert film.count(b"\xff\xda") > 20
    assert read_header(data + film, 32, LIMIT).work == read_header(data, 32, LIMIT).work


def test_a_long_file_that_waits_holds_no_copy_without_its_metadata() -> None:
    data = file((200, 200), "JPEG", comment=bytes(60_000))
    data = data[:2] + data[20 : 20 + 60_004] * 5 + data[2:]
    picture = read_header(data, 32, LIMIT)
    tracemalloc.start()
    again = read_header(data, 32, LIMIT)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < len(file((200, 200), "JPEG"))
    assert (again.decode() == picture.decode()).all()


def gif(side: int, control: bytes) -> bytes:
    """The header of a picture whose pixels do not follow."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2\0;"
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + control + frame


RESTORE_BACKGROUND, RESTORE_PREVIOUS = b"!\xf9\4\x08\0\0\0\0", b"!\xf9\4\x0d\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        file((2000, 2000), "PNG", "1"),
        file((2000, 2000), "JPEG", "L"),
        gif(5000, b""),
        gif(5000, RESTORE_BACKGROUND),
        gif(5000, RESTORE_PREVIOUS),
        gif(5000, RESTORE_BACKGROUND + b"!\xfe\1a\0" + RESTORE_PREVIOUS),
        # Pillow's reader takes one block more behind this extension.
        gif(5000, b"!\xff\x0bNETSCAPE2.0\0;" + b"x" * 59 + b"\0" + RESTORE_BACKGROUND),
        gif(5000, b"!\xff\x0bNETSCAPE2.0\0" + RESTORE_BACKGROUND),
    ],
    ids=["PNG", "JPEG", "GIF", "GIF-background", "GIF-previous", "GIF-both", "GIF-hidden", "GIF-loop"],
)
def test_pictures_that_wait_hold_no_pixels(data: bytes) -> None:
    before, waiting = resident_bytes(), []
    for _ in range(16):
        with suppress(UndecodableImageError):
            waiting.append(read_header(data, 32, MAX_PIXELS))
    assert resident_bytes() < before + 40 * 2**20, "400 MB for a byte per pixel of the GIFs"


def test_pixels_are_counted_too() -> None:
    pixels = np.zeros((40, 50, 3), np.uint8)
    picture = read_header(pixels, 32, LIMIT)
    assert (picture.kind, picture.pixels, picture.work) == ("pixels", 2000, 2000)
    assert picture.decode().shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("side", "kind", "options"),
    [
        (32, "JPEG", {}),
        (32, "PNG", {}),
        (300, "PNG", {}),
        (120, "JPEG", {}),
        (300, "JPEG", {"progressive": True}),
    ],
)
def test_the_largest_size_is_width_by_height(side: int, kind: str, options: dict[str, Any]) -> None:
    read_header(file((side, side), kind, **options), 32, side**2)
    with pytest.raises(ImageTooLargeError):
        read_header(file((side, side), kind, **options), 32, side**2 - 1)


def test_of_a_jpeg_that_is_reduced_it_is_what_is_decoded_and_read() -> None:
    data = file((600, 600), "JPEG")  # decoded at an eighth
    limit = 75**2 + 600**2 // 10
    picture = read_header(data, 32, limit)
    assert (picture.pixels, picture.decode().shape) == (75**2, (32, 32, 3))
    assert (picture.decode() == load_image(data, 32)).all()
    with pytest.raises(ImageTooLargeError, match="image is 600x600 = 360000 pixels"):
        read_header(data, 32, limit - 1)


@pytest.mark.parametrize("components", [1, 3])
def test_a_jpeg_of_a_scan_per_colour_is_not_cheap_at_any_scale(components: int) -> None:
    data = file((600, 600), "JPEG")
    start = data.index(b"\xff\xda")
    scan = data[start : start + 4] + bytes([components]) + data[start + 5 :]
    assert scan.count(b"\xff\xda") == 1
    one = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    with pytest.raises(ImageTooLargeError):
        read_header(
            data[:start] + (one if components == 1 else one + b"\0" + one + b"\0" + one) + bytes(9), 32, 300_000
        )


@pytest.mark.parametrize("size", [(7680, 4320), (8192, 6144)])
def test_the_default_limit_lets_large_photographs_through(size: tuple[int, int]) -> None:
    head = file((16, 16), "JPEG")
    at = head.index(b"\xff\xc0") + 5
    picture = read_header(head[:at] + struct.pack(">HH", *size[::-1]) + head[at + 4 :], 224, MAX_PIXELS)
    assert picture.pixels == size[0] * size[1] / 64
    assert picture.work < MAX_PIXELS


def test_a_jpeg_of_half_a_million_markers_is_refused() -> None:
    data = file((40, 40), "JPEG")
    bomb = data[:2] + b"\xff\xfe\0\2" * 600_000 + data[2:]
    with pytest.raises(UndecodableImageError):
        read_header(bomb, 32, LIMIT)
