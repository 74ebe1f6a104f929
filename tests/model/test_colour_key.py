"""The transparent colour of a PNG: at every depth the very colour, and no other, is white."""

import struct
import zlib

import numpy as np
import pytest

from msmlp.model import colour_key
from msmlp.model.preprocess import decode, load_image
from msmlp.service.decoding.pictures import read_header


def png(depth: int, colour: int, size: tuple[int, int], scanlines: bytes, key: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(scanlines))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", key) + pixels + chunk(b"IEND", b"")


def grey(depth: int, values: list[int], key: int) -> bytes:
    """One row."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    row = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return png(depth, 0, (len(values), 1), b"\0" + row, struct.pack(">H", key))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_key_of_grey(depth: int) -> None:
    most = 2**depth - 1
    values = sorted({0, 1, most // 2, most - 1, most})
    for key in values:
        wanted = [255 if value == key else value * 255 // most for value in values]
        assert np.asarray(decode(grey(depth, values, key)))[0, :, 0].tolist() == wanted, key


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_bits_of_a_key_above_its_depth_do_not_count(depth: int) -> None:
    assert np.asarray(decode(grey(depth, [0, 1], 2**depth + 1)))[0, :, 0].tolist() == [0, 255]


def test_the_key_of_wide_grey_is_all_its_bits() -> None:
    found = np.asarray(decode(grey(16, [0x1234, 0x1235, 0, 0xFFFF], 0x1234)))
    assert found.tolist() == [[[value] * 3 for value in (255, 0x12, 0, 255)]]


def test_the_key_of_rgb() -> None:
    data = png(8, 2, (3, 1), b"\0" + bytes([9, 8, 7, 9, 8, 6, 7, 8, 9]), struct.pack(">3H", 0x109, 8, 7))
    assert np.asarray(decode(data)).tolist() == [[[255] * 3, [9, 8, 6], [7, 8, 9]]]


def test_the_key_of_wide_rgb_is_all_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour_key, "STRIP_PIXELS", 200)
    colours = [(0x1234, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9ABD), (0x1235, 0x5678, 0x9ABC)]
    row = b"\0" + struct.pack(">9H", *sum(colours, ()))
    data = png(16, 2, (3, 300), row * 300, struct.pack(">3H", *colours[0]))
    wanted = [[255] * 3, [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9A]]
    assert np.array_equal(np.asarray(decode(data)), np.broadcast_to(wanted, (300, 3, 3)))
    picture = read_header(data, 8, 10_000)
    assert (picture.decode() == load_image(data, 8)).all()
    assert picture.work == 2 * picture.pixels


def test_without_the_key_wide_rgb_stays() -> None:
    data = png(16, 2, (1, 1), b"\0" + struct.pack(">3H", 0x1234, 0x5678, 0x9ABC), struct.pack(">3H", 0x1234, 0x5678, 0))
    assert np.asarray(decode(data)).tolist() == [[[0x12, 0x56, 0x9A]]]


GREY, RGB = grey(8, [9, 8], 9), png(8, 2, (2, 1), b"\0" + bytes([9, 9, 9, 8, 8, 8]), struct.pack(">3H", 9, 9, 9))


@pytest.mark.parametrize(("data", "length"), [(GREY, 0), (GREY, 1), (RGB, 2), (RGB, 5)])
def test_a_key_that_is_too_short_is_none(data: bytes, length: int) -> None:
    at = data.index(b"tRNS")
    key = data[at : at + 4 + length]
    short = data[: at - 4] + struct.pack(">I", length) + key + struct.pack(">I", zlib.crc32(key))
    short += data[at + 8 + int.from_bytes(data[at - 4 : at], "big") :]
    assert np.asarray(decode(short))[0, :, 0].tolist() == [9, 8]


@pytest.mark.parametrize("data", [GREY, RGB])
def test_a_key_with_a_bad_checksum_or_after_the_pixels_is_none_and_of_two_the_first_counts(data: bytes) -> None:
    start = data.index(b"tRNS") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    key, other = data[start:end], bytearray(data[start:end])
    other[8:-4] = bytes([0, 8]) * (len(other[8:-4]) // 2)
    other[-4:] = struct.pack(">I", zlib.crc32(other[4:-4]))
    for chunks, wanted in ((key[:-1] + b"!", [9, 8]), (key + other, [255, 8]), (other + key, [9, 255])):
        assert np.asarray(decode(data[:start] + chunks + data[end:]))[0, :, 0].tolist() == wanted
    assert np.asarray(decode(data[:start] + data[end:-12] + key + data[-12:]))[0, :, 0].tolist() == [9, 8]
