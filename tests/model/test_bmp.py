"""BMPs of masks that Pillow does not know, and of 2 bits: the colours are those of the header."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import BmpImagePlugin

from msmlp.model import bmp
from msmlp.model.errors import ImageError, ImageTooLargeError, UndecodableImageError
from msmlp.model.preprocess import decode, load_image
from msmlp.service.decoding.pictures import ODD_PIXEL, read_header

SIZE = WIDTH, HEIGHT = 5, 3
MASKS = {
    "4-4-4": (16, (0xF00, 0xF0, 0xF)),
    "2-3-1": (16, (0b11 << 8, 0b111 << 3, 1)),
    "5-6-5 backwards": (16, (0x1F, 0x7E0, 0xF800)),
    "XBGR": (32, (0xFF, 0xFF00, 0xFF0000)),
    "7-18-7": (32, (0xFE000000, 0x1FFFF80, 0x7F)),
    "11-11-10": (32, (0x7FF, 0x3FF800, 0xFFC00000)),
    "no blue": (32, (0xFF00, 0xFF, 0)),
}


def file(bits: int, values: np.ndarray, masks: tuple[int, ...], length: int = 40, top_down: bool = False) -> bytes:
    """A BMP of `values` [height, width], whose first row is the upper one."""
    height, width = values.shape
    kind = 6 if length == 40 and len(masks) == 4 else 3
    head = struct.pack("<IiiHHIIiiII", length, width, -height if top_down else height, 1, bits, kind, 0, 0, 0, 0, 0)
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(length, b"\0")
    rows = [row.astype(f"<u{bits // 8}").tobytes() for row in (values if top_down else values[::-1])]
    body = b"".join(row + bytes(-len(row) % 4) for row in rows)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body


def noise(bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 2**bits, (HEIGHT, WIDTH), dtype=np.int64)


def scaled(values: np.ndarray, mask: int) -> np.ndarray:
    """Bit by bit, as slow as it is plain."""
    places = [place for place in range(32) if mask >> place & 1]
    found = sum(((values >> place & 1) << at for at, place in enumerate(places)), start=0 * values)
    if len(places) > 8:
        return found >> (len(places) - 8)
    return np.floor(found * 255 / max(1, 2 ** len(places) - 1) + 0.5).astype(int)


@pytest.mark.parametrize("strip", [1, 2**16])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("length", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(("bits", "masks"), MASKS.values(), ids=MASKS)
def test_colours_behind_masks(
    bits: int, masks: tuple[int, ...], length: int, top_down: bool, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmp, "STRIP_PIXELS", strip)
    values = noise(bits)
    found = np.asarray(decode(file(bits, values, masks, length, top_down)))
    assert np.array_equal(found, np.stack([scaled(values, mask) for mask in masks], axis=2))


@pytest.mark.parametrize("length", [40, 56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks"), [(16, (0xF00, 0xF0, 0xF, 0xF000)), (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000))]
)
def test_alpha_is_laid_over_white(bits: int, masks: tuple[int, ...], length: int) -> None:
    values = noise(bits)
    red, green, blue, alpha = (scaled(values, mask) for mask in masks)
    wanted = np.stack([colour * alpha + 255 * (255 - alpha) for colour in (red, green, blue)], axis=2) / 255
    assert np.abs(np.asarray(decode(file(bits, values, masks, length))) - wanted).max() <= 1


def test_alpha_of_nothing_but_zeros_is_none() -> None:
    values = noise(24)
    found = np.asarray(decode(file(32, values, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), 108)))
    assert np.array_equal(found, np.stack([values & 255, values >> 8 & 255, values >> 16], axis=2))


def test_what_pillow_reads_is_left_to_it() -> None:
    assert bmp.open_odd_bmp(file(32, noise(16), (0xFF0000, 0xFF00, 0xFF))) is None


def indexed(bits: int, compression: int, size: tuple[int, int], body: bytes, colours: int = 4) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, compression, 0, 0, 0, colours % 4, 0)
    palette = bytes([1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 10, 11, 12, 0])[: 4 * colours]
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, offset) + head + palette + body


COLOURS = np.array([[3, 2, 1], [6, 5, 4], [9, 8, 7], [12, 11, 10], [0, 0, 0]])


def two_bits(top_down: bool, colours: int = 4) -> bytes:
    rows = [bytes([0b00_01_10_11, 0b10_000000, 0, 0]), bytes([0, 0, 0, 0])]
    return indexed(2, 0, (5, -2 if top_down else 2), b"".join(rows if top_down else rows[::-1]), colours)


@pytest.mark.parametrize("top_down", [False, True])
def test_two_bits(top_down: bool) -> None:
    assert np.array_equal(np.asarray(decode(two_bits(top_down))), COLOURS[[[0, 1, 2, 3, 2], [0] * 5]])


def test_what_the_palette_does_not_have_is_black() -> None:
    assert np.array_equal(np.asarray(decode(two_bits(True, 2))), COLOURS[[[0, 1, 4, 4, 4], [0] * 5]])


GAPS = [[0, 0, 4, 4, 4], [4, 4, 4, 1, 2], [2, 2, 1, 1, 1]]
"""What the runs below tell, the lowest row first; 4 is what they do not tell."""


@pytest.mark.parametrize(
    ("bits", "compression", "body"),
    [
        (8, 1, bytes([2, 0, 0, 2, 1, 1, 1, 1, 9, 2, 0, 0, 2, 2, 0, 3, 1, 1, 1, 0, 0, 1])),
        (4, 2, bytes([2, 0x00, 0, 2, 1, 1, 9, 0x12, 0, 0, 2, 0x22, 0, 3, 0x11, 0x10, 0, 1])),
        (8, 1, bytes([2, 0, 0, 2, 1, 1, 0, 4, 1, 2, 1, 1, 0, 0, 2, 2, 9, 1, 0, 2, 0, 9])),
    ],
    ids=["8 bits", "4 bits", "absolute ones beyond the line, a step beyond the picture"],
)
def test_runs_with_gaps(bits: int, compression: int, body: bytes) -> None:
    found = np.asarray(decode(indexed(bits, compression, (5, 3), body)))
    assert np.array_equal(found, COLOURS[GAPS[::-1]])


def test_runs_that_end_too_early_are_refused() -> None:
    with pytest.raises(UndecodableImageError, match="image file is truncated"):
        decode(indexed(8, 1, (5, 3), bytes([5, 1, 0, 0, 5, 1])))


def test_endless_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bmp, "MOST_RUNS", 3)
    with pytest.raises(UndecodableImageError, match="the file has too many parts"):
        decode(indexed(8, 1, (5, 3), bytes([1, 1] * 15)))


@pytest.mark.parametrize(
    ("length", "mask", "seen"), [(40, 0, 0), (56, 0xFF000000, 0), (108, 0, 0), (108, 0xFF000000, 128)]
)
def test_alpha_without_other_masks_counts_in_a_long_header_that_tells_its_mask(
    length: int, mask: int, seen: int
) -> None:
    data = bytearray(file(32, np.full((3, 5), 0x80000000), (0xFF0000, 0xFF00, 0xFF, mask)[: 3 + (length > 40)], length))
    data[30] = 0
    if length == 40:  # the masks behind it would be pixels
        data[10:14] = struct.pack("<I", 14 + length + 12)
    assert abs(int(np.asarray(decode(bytes(data))).max()) - (127 if seen else 0)) <= 1


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("length", [40, 124])
def test_colours_that_no_pixel_can_name_are_left_out_and_cost_nothing(
    bits: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def indexed(colours: int) -> bytes:
        head = struct.pack("<IiiHHIIiiII", length, 8, 2, 1, bits, 0, 0, 0, 0, colours, 0).ljust(length, b"\0")
        palette = np.random.default_rng(0).integers(0, 256, (256, 4), dtype=np.uint8).tobytes()
        rows = b"".join(bytes([0x1B, 0xE4, row, 9] * bits)[: max(4, bits)] for row in (1, 2))
        start = 14 + length + len(palette)
        return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + palette + rows

    looked = list[int]()
    monkeypatch.setattr(BmpImagePlugin, "o8", lambda value: looked.append(value) or bytes([value & 255]))
    found = np.asarray(decode(indexed(65_536)))
    assert len(looked) <= 2**bits
    assert np.array_equal(found, np.asarray(decode(indexed(0))))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) > 1


def test_masks_with_gaps_are_refused_in_words() -> None:
    with pytest.raises(UndecodableImageError, match="the bits of a colour mask are not next to each other"):
        decode(file(16, noise(16), (0xF0F, 0xF0, 0)))


def test_too_many_pixels_are_refused_before_they_are_read() -> None:
    data = bytearray(file(32, noise(32), (1, 2, 4)))
    data[18:26] = struct.pack("<ii", 2**15, 2**15)
    with pytest.raises(ImageTooLargeError):
        decode(bytes(data))


def test_their_work_is_predicted() -> None:
    data = file(16, noise(16), (0xF00, 0xF0, 0xF))
    picture = read_header(data, 8, 1000)
    assert (picture.kind, picture.pixels, picture.work) == ("BMP", 15, ODD_PIXEL * 15)
    assert (picture.decode() == load_image(data, 8)).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "data",
    [
        file(16, noise(16), (0xF00, 0xF0, 0xF)),
        file(32, noise(32), (1, 2, 4, 8), 108),
        two_bits(False),
        two_bits(True, 2),
        indexed(8, 1, (5, 3), bytes([2, 0, 0, 2, 1, 1, 0, 4, 1, 2, 1, 1, 0, 0, 2, 2, 9, 1, 0, 2, 0, 9])),
        indexed(4, 2, (5, 3), bytes([2, 0x00, 0, 2, 1, 1, 9, 0x12, 0, 0, 2, 0x22, 0, 3, 0x11, 0x10, 0, 1])),
    ],
)
def test_damage_is_an_image_error(data: bytes) -> None:
    def answered(damaged: bytes) -> None:
        with suppress(ImageError):
            assert load_image(damaged, 8, max_pixels=10_000).shape == (8, 8, 3)

    for at in range(len(data)):
        answered(data[:at])
        for value in (0, 1, 2, 0x7F, 0x80, 0xFF):
            answered(data[:at] + bytes([value]) + data[at + 1 :])
