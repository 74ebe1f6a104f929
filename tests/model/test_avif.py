"""AVIF: read like the other formats, and never more than its header tells."""

import io
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msmlp.model.avif import FRAMES, MARGIN, without_texts
from msmlp.model.errors import ImageError, ImageTooLargeError, UndecodableImageError
from msmlp.model.preprocess import decode, load_image
from msmlp.service.decoding.pictures import read_header

ROWS, COLUMNS = np.mgrid[0:30, 0:40]
STORED = np.stack([COLUMNS * 6, ROWS * 8, 2 * (ROWS + COLUMNS)], axis=2).astype(np.uint8)
PICTURE = Image.fromarray(STORED)


def avif(image: Image.Image = PICTURE, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "AVIF", **{"quality": 95, "subsampling": "4:4:4", **options})
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:2:0"}, {"exif": exif(1), "xmp": b'<x tiff:Orientation="6"/>'}]
)
def test_the_picture(options: dict[str, Any]) -> None:
    assert np.abs(np.asarray(decode(avif(**options))).astype(int) - STORED).mean() < 4


def test_transparency_is_laid_over_white() -> None:
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(COLUMNS < 20, 0, 255).astype(np.uint8)))
    found = np.asarray(decode(avif(clear)))
    assert found[:, :18].min() > 240
    assert np.abs(found[:, 22:].astype(int) - STORED[:, 22:]).mean() < 6


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_it_is_turned_as_its_header_tells(orientation: int) -> None:
    found = np.asarray(decode(avif(exif=exif(orientation)))).astype(int)
    assert np.abs(found - np.rot90(STORED, {3: 2, 6: -1, 8: 1}[orientation])).mean() < 4


def test_pillow_gets_neither_exif_nor_xmp(monkeypatch: pytest.MonkeyPatch) -> None:
    block = exif(1)
    block[0x010F] = "a camera"
    data = avif(exif=block, xmp=b"<x/>")
    assert b"a camera" in data
    bare, pixels = without_texts(data)
    assert pixels == 1200
    assert not {"exif", "xmp"} & set(Image.open(io.BytesIO(bare)).info)


def test_frames_larger_than_the_header_tells_are_refused() -> None:
    data = bytearray(avif(Image.new("RGB", (1000, 800))))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 32, 32)
    with pytest.raises(UndecodableImageError, match="frames have 800000 pixels, many more than its 32x32"):
        decode(bytes(data))


def test_many_frames_are_refused_shown_or_not() -> None:
    data = avif(Image.new("RGB", (400, 300)))
    start = data.index(b"mdat") + 4
    stream, iloc = data[start:], data.index(b"iloc")
    frame = stream[2 + 2 + stream[3] :]  # after the temporal delimiter and the sequence header
    assert stream[:3] == b"\x12\0\x0a"
    assert frame[0] >> 3 & 15 == 6
    length = struct.unpack_from(">I", data, iloc + 22)[0]
    assert length == len(stream)
    many = data[: iloc + 22] + struct.pack(">I", length + 7 * len(frame)) + data[iloc + 26 : start] + stream + 7 * frame
    many = many[: start - 8] + struct.pack(">I", len(many) - start + 8) + many[start - 4 :]
    assert FRAMES * 400 * 300 + MARGIN < 8 * 400 * 300
    with pytest.raises(UndecodableImageError, match="frames have 960000 pixels"):
        decode(many)


def test_endless_parts_are_refused() -> None:
    data = avif()
    start, iloc, empty = data.index(b"mdat") + 4, data.index(b"iloc"), b"\x12\0" * 2000
    stream = empty + data[start:]
    head = data[: iloc + 22] + struct.pack(">I", len(stream)) + data[iloc + 26 : start - 8]
    units = head + struct.pack(">I", len(stream) + 8) + b"mdat" + stream
    for endless, most in ((units, 64), (data + b"\0\0\0\x08free" * 2000, 1024)):
        with pytest.raises(UndecodableImageError, match=f"the AVIF has more parts than the limit of {most}"):
            decode(endless)


def test_endless_links_between_items_are_refused() -> None:
    """The decoder would make an item of a kilobyte for each, after a search through all before."""
    data = avif()
    iprp, meta, iloc = data.index(b"iprp") - 4, data.index(b"meta") - 4, data.index(b"iloc")
    links = struct.pack(">B3sI", 1, b"", 1000) + b"".join(struct.pack(">IB", 100 + item, 0) for item in range(1000))
    box = struct.pack(">I4s", 8 + len(links), b"ipma") + links
    end = iprp + int.from_bytes(data[iprp : iprp + 4], "big")
    bomb = bytearray(data[:end] + box + data[end:])
    for at in (iprp, meta, iloc + 18):  # two sizes, and where the pixels are
        bomb[at : at + 4] = (int.from_bytes(bomb[at : at + 4], "big") + len(box)).to_bytes(4, "big")
    with pytest.raises(UndecodableImageError, match="links between items have more bytes than the limit of 4096"):
        decode(bytes(bomb))


@pytest.mark.parametrize("brand", [b"avis", b"avif", b"mif1", b"msf1"])
def test_a_sequence_is_refused_in_words(brand: bytes) -> None:
    data = avif(save_all=True, append_images=[PICTURE.rotate(90)])
    data = data[:8] + brand + data[12:]
    with pytest.raises(UndecodableImageError, match="an AVIF sequence, which is not read"):
        decode(data)


def test_limit_and_work() -> None:
    clear = PICTURE.convert("RGBA")
    clear.putalpha(99)
    data = avif(clear)
    with pytest.raises(ImageTooLargeError):
        decode(data, max_pixels=1199)
    picture = read_header(data, 8, 1200)
    assert (picture.kind, picture.pixels, picture.work) == ("AVIF", 1200, 2400)
    assert (picture.decode() == load_image(data, 8)).all()


def test_damage_is_an_image_error() -> None:
    data = avif(exif=exif(6))
    head = data.index(b"mdat") + 60

    def answered(damaged: bytes) -> None:
        with suppress(ImageError):
            assert load_image(damaged, 8, max_pixels=10_000).shape == (8, 8, 3)

    for at in range(head):
        answered(data[:at])
        for value in (0, 1, 0x7F, 0xFF, data[at] ^ 1 << at % 8):
            answered(data[:at] + bytes([value]) + data[at + 1 :])
