"""Every decision in the docstring of model/preprocess.py, on files made here and on a photograph."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from msmlp.model import preprocess
from msmlp.model.errors import ImageError, ImageTooLargeError, UndecodableImageError
from msmlp.model.preprocess import FORMATS, decode, load_image, upright_rgb
from msmlp.model.views import to_square
from tests.pictures import PICTURES
from tests.pictures.profiles import DISPLAY_P3

Pixels = NDArray[np.uint8]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int, height: int) -> Pixels:
    """A picture in which no two corners, rows or columns look alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * columns // max(1, width - 1), 255 * rows // max(1, height - 1)
    return np.stack([red, green, (red + green) // 3], axis=2).astype(np.uint8)


def pixels(data: bytes, **options: Any) -> Pixels:
    return np.asarray(decode(data, **options))


def png(width: int, height: int, depth: int, colour: int, scanlines: bytes) -> bytes:
    """A PNG file by hand, for what Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
    )


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_very_pixels(kind: str, options: dict[str, Any]) -> None:
    picture = gradient(40, 30)
    assert np.array_equal(pixels(encode(Image.fromarray(picture), kind, **options)), picture)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_as_rgb(kind: str) -> None:
    found = pixels(encode(Image.fromarray(gradient(40, 30)), kind))
    assert found.shape == (30, 40, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - gradient(40, 30)).mean() < 12


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_with_a_list_of_those_read(kind: str) -> None:
    with pytest.raises(UndecodableImageError, match="PNG, JPEG, WEBP, BMP, GIF, AVIF"):
        decode(encode(Image.fromarray(gradient(32, 32)), kind))


# --- colour ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_grey_is_three_equal_channels(kind: str) -> None:
    grey = Image.fromarray(gradient(32, 32)).convert("L")
    found = pixels(encode(grey, kind))
    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 1], found[..., 2])
    assert np.abs(found[..., 0].astype(int) - np.asarray(grey)).max() <= (12 if kind == "JPEG" else 0)


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(encode(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        image.putpixel((x, 0), x)
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette_becomes_its_colours(kind: str) -> None:
    assert pixels(encode(palette_image(), kind)).tolist() == [[list(RED), list(GREEN), list(BLUE)]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str) -> None:
    assert pixels(encode(palette_image(), kind, transparency=1)).tolist() == [[list(RED), list(WHITE), list(BLUE)]]


def test_palette_entries_of_some_opacity_are_laid_over_white() -> None:
    found = pixels(encode(palette_image(), transparency=bytes([255, 0, 102])))
    assert found.tolist() == [[list(RED), list(WHITE), [153, 153, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_rgba_is_laid_over_white(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 0, 102)):
        image.putpixel((x, 0), (0, 0, 255, alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert pixels(encode(image, kind, **options)).tolist() == [[list(BLUE), list(WHITE), [153, 153, 255]]]


def test_grey_with_alpha_is_laid_over_white() -> None:
    image = Image.new("LA", (3, 1))
    for x, alpha in enumerate((255, 0, 102)):
        image.putpixel((x, 0), (100, alpha))
    assert pixels(encode(image)).tolist() == [[[100] * 3, [255] * 3, [193] * 3]]


@pytest.mark.parametrize(("mode", "colour"), [("L", 100), ("RGB", (9, 8, 7))])
def test_a_colour_declared_transparent_is_white(mode: str, colour: Any) -> None:
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), 200 if mode == "L" else (200, 200, 200))
    assert pixels(encode(image, transparency=colour)).tolist() == [[[255] * 3, [200] * 3]]


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), RED), ((255, 0, 255, 0), GREEN), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), (0,) * 3)],
)
def test_cmyk_jpeg(ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    found = pixels(encode(Image.new("CMYK", (16, 16), ink), "JPEG"))
    assert np.abs(found.astype(int) - colour).max() <= 3


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    wide = np.array([[0, 255, 256, 0x1234, 65535]], dtype=np.uint16)
    assert pixels(encode(Image.fromarray(wide))).tolist() == [[[v] * 3 for v in (0, 0, 1, 0x12, 255)]]


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    line = b"\x00" + struct.pack(">6H", 0x1234, 0xFFFF, 0, 0xABCD, 0x0100, 0x00FF)
    assert pixels(png(2, 1, 16, 2, line)).tolist() == [[[0x12, 255, 0], [0xAB, 1, 0]]]


def test_sixteen_bit_grey_with_alpha_is_laid_over_white() -> None:
    line = b"\x00" + struct.pack(">4H", 0x6400, 0xFFFF, 0x6400, 0)
    assert pixels(png(2, 1, 16, 4, line)).tolist() == [[[100] * 3, [255] * 3]]


# --- animation and orientation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_an_animation_counts_as_its_first_frame(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert np.array_equal(pixels(data), np.asarray(frames[0]))


@pytest.mark.parametrize("transparent", [False, True])
def test_what_the_first_frame_of_a_gif_leaves_free_is_white(transparent: bool) -> None:
    whole = encode(Image.new("P", (2, 1), 1), "GIF", **({"transparency": 3} if transparent else {}))
    start = whole.index(b",\0\0\0\0\2\0\1\0")
    data = whole[:6] + struct.pack("<HH", 6, 4) + whole[10 : start + 1] + struct.pack("<HH", 3, 1) + whole[start + 5 :]
    found = pixels(data).copy()
    assert found.shape == (4, 6, 3)
    assert np.array_equal(found[1:2, 3:5], pixels(whole))
    found[1:2, 3:5] = 255
    assert found.min() == 255


# How each EXIF orientation is to be shown, as the standard draws it.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95})])
def test_exif_orientation_is_applied(kind: str, options: dict[str, Any], orientation: int) -> None:
    stored = gradient(48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(encode(Image.fromarray(stored), kind, exif=exif, **options))
    wanted = UPRIGHT[orientation](stored)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= (20 if kind == "JPEG" else 0)


def test_exif_orientation_of_a_webp_is_not_applied_as_in_browsers() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(gradient(8, 6)), "WEBP", lossless=True, exif=exif)
    assert np.array_equal(pixels(data), gradient(8, 6))
    assert np.array_equal(np.asarray(upright_rgb(Image.open(io.BytesIO(data)))), gradient(8, 6))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encode(Image.fromarray(gradient(8, 6)), exif=exif)), gradient(8, 6))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"not what it says", b"II*\x00\x08\x00\x00\x00\xff\xff"])
def test_an_exif_block_that_cannot_be_read_is_ignored(kind: str, exif: bytes) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(gradient(8, 6)), kind, exif=exif, **options)
    assert np.array_equal(pixels(data), gradient(8, 6))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_an_orientation_in_xmp_alone_is_not_applied(kind: str, options: dict[str, Any]) -> None:
    stored, xmp = gradient(48, 32), b'<x tiff:Orientation="6"/>'
    found = pixels(encode(Image.fromarray(stored), kind, xmp=xmp, **options))
    assert found.shape == stored.shape
    assert np.abs(found.astype(int) - stored).mean() < 4


@pytest.mark.parametrize(
    "chunk",
    [
        struct.pack(">I", 3) + b"tEXta\0b" + b"nope",
        struct.pack(">I", 5) + b"zTXta\0\x09bc" + struct.pack(">I", zlib.crc32(b"zTXta\0\x09bc")),
        struct.pack(">I", 5) + b"iCCPa\0\x09bc" + b"nope",
    ],
)
def test_damaged_metadata_of_a_png_does_not_matter(chunk: bytes) -> None:
    whole = encode(Image.fromarray(gradient(8, 6)))
    assert np.array_equal(pixels(whole[:33] + chunk + whole[33:]), gradient(8, 6))


def test_a_text_that_unpacks_to_more_than_a_mebibyte_does_not_matter() -> None:
    whole, text = encode(Image.fromarray(gradient(8, 6))), b"a\0\0" + zlib.compress(bytes(3 * 2**19))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    assert np.array_equal(pixels(whole[:33] + chunk + whole[33:]), gradient(8, 6))


def test_no_picture_waits_until_pillow_has_loaded_its_readers() -> None:
    files = [encode(Image.fromarray(gradient(8, 6)), kind) for kind in FORMATS]
    program = (
        "import sys; from contextlib import suppress\n"
        "from msmlp.model.preprocess import decode; from msmlp.model.errors import ImageError\n"
        "before = {*sys.modules}\n"
        f"for file in {[*files, b'notes']!r}:\n"
        "    with suppress(ImageError): decode(file)\n"
        "print([name for name in {*sys.modules} - before if 'Plugin' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_orientation_set_on_an_image_in_memory_counts_and_the_image_stays_as_it_is() -> None:
    image = Image.fromarray(gradient(48, 32))
    image.getexif()[0x0112] = 3
    assert np.array_equal(np.asarray(upright_rgb(image)), gradient(48, 32)[::-1, ::-1])
    assert np.array_equal(np.asarray(image), gradient(48, 32))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGBa"])
@pytest.mark.parametrize("size", [(7, 40), (64, 40), (300, 2), (40, 1)])
def test_transparency_is_blended_in_strips_as_it_is_in_one_piece(
    mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    image = Image.fromarray(channels)
    image = image.convert("RGB").quantize(50) if mode == "P" else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(0, 250, 5))
    whole = np.asarray(upright_rgb(image))
    monkeypatch.setattr(preprocess, "STRIP_PIXELS", 256)
    assert np.array_equal(np.asarray(upright_rgb(image)), whole)


# --- size --------------------------------------------------------------------------------------------------------


def bands(width: int, height: int, axis: int) -> Image.Image:
    """Red, green and blue bands along one axis; the middle one is a square."""
    picture = np.empty((height, width, 3), dtype=np.uint8)
    for colour, part in zip((RED, GREEN, BLUE), np.array_split(np.arange(picture.shape[axis]), 3), strict=True):
        picture[(slice(None), part) if axis == 1 else part] = colour
    return Image.fromarray(picture)


@pytest.mark.parametrize(("width", "height", "axis", "margin"), [(300, 100, 1, 1), (100, 300, 0, 1), (24, 8, 1, 8)])
def test_the_middle_square_is_kept(width: int, height: int, axis: int, margin: int) -> None:
    square = to_square(bands(width, height, axis), 32)
    assert square.shape == (32, 32, 3)
    # At the border the filter may feel the neighbouring band, two of the picture's own pixels away.
    inner = square[margin:-margin, margin:-margin]
    assert np.array_equal(inner, np.broadcast_to(np.array(GREEN, np.uint8), inner.shape))


def test_the_right_size_passes_unchanged() -> None:
    picture = gradient(32, 32)
    assert np.array_equal(to_square(Image.fromarray(picture), 32), picture)
    assert np.array_equal(load_image(encode(Image.fromarray(picture)), 32), picture)


def test_scaling_down_is_antialiased() -> None:
    checkers = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    found = to_square(Image.fromarray(checkers).convert("RGB"), 32)
    assert found.min() >= 120
    assert found.max() <= 135


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (7, 5), (33, 31), (2000, 3)])
def test_any_size_becomes_the_models_size(size: tuple[int, int]) -> None:
    square = load_image(encode(Image.new("RGB", size, (10, 120, 230))), 32)
    assert square.shape == (32, 32, 3)
    assert np.abs(square.astype(int) - (10, 120, 230)).max() <= 1


def test_a_photograph_keeps_its_middle(cat_photo: bytes) -> None:
    photo = np.asarray(Image.open(io.BytesIO(cat_photo)))
    height, width = photo.shape[:2]
    left = (width - height) // 2
    middle = photo[:, left : left + height]
    blocks = middle[: height // 4 * 4, : height // 4 * 4].reshape(4, height // 4, 4, height // 4, 3).mean((1, 3))
    assert np.abs(load_image(cat_photo, 4).astype(float) - blocks).max() < 15


# --- large JPEGs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "near"), [((1600, 1200), 32), ((1200, 500), 32), ((500, 130), 32), ((640, 480), 224)])
def test_a_large_jpeg_is_decoded_at_a_scale_of_at_least_twice_the_size(size: tuple[int, int], near: int) -> None:
    data = encode(Image.fromarray(gradient(*size)), "JPEG", quality=95)
    assert decode(data).size == size
    reduced = decode(data, near=near).size
    assert min(reduced) >= 2 * near or reduced == size
    if min(size) >= 4 * near:
        assert max(reduced) <= max(size) // 2


def test_a_rotated_large_jpeg_is_reduced_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(gradient(1600, 800)), "JPEG", exif=exif)
    assert decode(data, near=32).size == (100, 200)


def test_a_reduced_jpeg_looks_like_the_full_one(cat_photo: bytes) -> None:
    large = encode(Image.open(io.BytesIO(cat_photo)).resize((1804, 1200)), "JPEG", quality=92)
    reduced, full = load_image(large, 32), to_square(decode(large), 32)
    assert np.abs(reduced.astype(int) - full).mean() < 3


def test_a_phones_jpeg_with_a_second_picture_is_its_first_and_reduced_too() -> None:
    first = Image.fromarray(gradient(1600, 1200))
    data = encode(first, "MPO", save_all=True, append_images=[Image.new("RGB", (1600, 1200), RED)])
    assert np.abs(pixels(data).astype(int) - gradient(1600, 1200)).mean() < 5
    assert decode(data, near=32).size == (200, 150)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_not_reduced(kind: str) -> None:
    assert decode(encode(Image.fromarray(gradient(400, 300)), kind), near=16).size == (400, 300)


# --- refusals ----------------------------------------------------------------------------------------------------

HUGE = png(10_000, 10_000, 8, 2, b"too few bytes for even one line")


def test_a_hundred_megapixels_are_refused_from_the_header() -> None:
    # It holds no pixels, so decoding it would report damage instead.
    with pytest.raises(ImageTooLargeError):
        decode(HUGE)


@pytest.mark.filterwarnings("ignore:.*exceeds limit:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [10_000, 20_000])
def test_the_refusal_names_the_limit(width: int) -> None:
    with pytest.raises(ImageTooLargeError, match="32000000"):
        decode(png(width, 10_000, 8, 2, b""))


def test_the_limit_is_the_callers() -> None:
    data = encode(Image.fromarray(gradient(40, 30)))
    assert decode(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(ImageTooLargeError, match="40x30 = 1200 pixels, the limit is 1199"):
        decode(data, max_pixels=1199)
    with pytest.raises(ImageTooLargeError):
        load_image(data, 32, max_pixels=1199)


def a_jpeg() -> bytes:
    return encode(Image.fromarray(gradient(64, 48)), "JPEG")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!doctype html><html><body>404</body></html>", id="html"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', id="svg"),
        pytest.param(bytes(range(256)) * 8, id="garbage"),
        pytest.param(a_jpeg()[:400], id="truncated-jpeg-header"),
        pytest.param(a_jpeg()[:-60], id="truncated-jpeg"),
        pytest.param(encode(Image.fromarray(gradient(64, 48)))[:-40], id="truncated-png"),
        pytest.param(encode(Image.fromarray(gradient(64, 48)), "WEBP")[:-40], id="truncated-webp"),
        pytest.param(encode(Image.fromarray(gradient(64, 48)), "BMP")[:-40], id="truncated-bmp"),
        pytest.param(encode(Image.fromarray(gradient(64, 48)), "GIF")[:-400], id="truncated-gif"),
        pytest.param(b"\xff\xd8\xff\xe0", id="a-jpeg-that-only-begins"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="a-png-that-only-begins"),
        pytest.param(png(0, 5, 8, 2, b""), id="no-width"),
        pytest.param(png(5, 5, 8, 3, bytes(30)), id="a-png-without-its-palette"),
    ],
)
def test_what_is_no_whole_image_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImageError) as refused:
        decode(data)
    assert "\n" not in str(refused.value)
    assert "Error" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(5, 5, 8, 3, bytes(30)), "damaged image header: a PNG of palette colours without its palette"),
        (encode(Image.new("P", (5, 5))).replace(b"PLTE", b"PLTF"), "damaged image header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged image header"),
        (a_jpeg()[:-60], "damaged or truncated JPEG image: the file ends within the picture"),
        (encode(Image.new("L", (9, 9)), "BMP")[:28] + b"\7" + bytes(99), "damaged image header: Unsupported BMP pixel"),
        (encode(Image.fromarray(gradient(64, 48)))[:-40], "damaged or truncated PNG image: image file is truncated"),
        (png(5, 5, 8, 2, b"\x09" * 80), "damaged or truncated PNG image: unrecognized data stream"),
    ],
)
def test_a_reason_is_words_and_no_name_of_an_exception(data: bytes, words: str) -> None:
    with pytest.raises(UndecodableImageError, match=f"^{words}[^()]*(\\([^A-Z]*\\)[^()]*)?$"):
        decode(data)


def test_a_truncated_photograph_is_refused(cat_photo: bytes) -> None:
    with pytest.raises(UndecodableImageError, match="damaged or truncated JPEG"):
        load_image(cat_photo[: len(cat_photo) // 2], 32)


def valid_files() -> list[bytes]:
    picture = Image.fromarray(gradient(24, 18))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    return [
        encode(picture),
        encode(picture.convert("RGBA")),
        encode(picture.convert("P"), transparency=0),
        encode(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 150)),
        encode(picture, "PNG", **frames),
        encode(picture, "JPEG", exif=exif),
        encode(picture, "JPEG", progressive=True),
        encode(picture.convert("CMYK"), "JPEG"),
        encode(picture, "WEBP", exif=exif),
        encode(picture.convert("RGBA"), "WEBP", lossless=True),
        encode(picture, "WEBP", **frames),
        encode(picture, "BMP"),
        encode(picture.convert("P"), "BMP"),
        encode(picture, "GIF"),
        encode(picture, "GIF", **frames),
        encode(picture, "PNG", icc_profile=DISPLAY_P3),
        encode(picture, "JPEG", icc_profile=DISPLAY_P3),
        encode(picture, "WEBP", icc_profile=DISPLAY_P3),
        PICTURES["BMP: 8 bits in runs"].data,
        PICTURES["BMP: 4 bits in runs with gaps"].data,
        PICTURES["PNG: grey with a key, 4 bits, interlaced"].data,
    ]


def assert_answered(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        square = load_image(data, 8, max_pixels=100_000)
        assert square.shape == (8, 8, 3)
        assert square.dtype == np.uint8


@given(st.binary(max_size=400))
def test_any_bytes_are_an_image_or_an_image_error(data: bytes) -> None:
    assert_answered(data)


# Pillow warns of much that is odd in a file; served, that is a line in a log and not an error.
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300)
@given(
    data=st.sampled_from(valid_files()),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    insertion=st.tuples(st.floats(0, 1), st.binary(max_size=8)),
)
def test_a_damaged_file_is_an_image_or_an_image_error(
    data: bytes, changes: list[tuple[float, int]], keep: float, insertion: tuple[float, bytes]
) -> None:
    damaged = bytearray(data[: int(len(data) * keep)])
    for place, value in changes:
        if damaged:
            damaged[int(place * (len(damaged) - 1))] = value
    at = int(insertion[0] * len(damaged))
    damaged[at:at] = insertion[1]
    assert_answered(bytes(damaged))
