"""The plainest pictures of the model's size, without Pillow's readers: they take longer than the decoding itself.

What most encoders make of a small picture has one layout, which a few comparisons recognise. Its bytes then go to the
decoder that Pillow's reader would pass them to, with the same arguments: the pixels are the same. Everything else is
left to the readers, and so are damaged files: they find the words for an error.
"""

import struct
import zlib
from functools import lru_cache

from PIL import Image

MOST_TABLES = 2**12
"""Bytes of a JPEG's tables; four take some 500."""
SCAN = b"\xff\xda"


def plain_format(data: bytes, size: int) -> str | None:
    """PNG or JPEG if the file is plain and has size x size pixels, whatever comes after its header; else None."""
    png, frame = _headers(size)
    if data.startswith(png):
        # Before IEND: the checksum of the pixels and the length of IEND, which the reader ignores, too.
        end = 41 + int.from_bytes(data[33:37], "big")
        return "PNG" if data[37:41] == b"IDAT" and data[end + 8 : end + 12] == b"IEND" else None
    plain = data.startswith(frame, 158) and data.startswith(b"\xff\xd8\xff\xe0\x00\x10JFIF\0") and _plain_tables(data)
    return "JPEG" if plain else None


def plain_image(data: bytes, size: int, *, max_pixels: int) -> Image.Image | None:
    """The RGB image of a plain PNG or JPEG of size x size pixels; None for any other file and a damaged one."""
    if size * size > max_pixels:
        return None
    try:
        kind = plain_format(data, size)
        if kind == "PNG":  # one chunk of pixels and no other chunk
            pixels = data[41 : 41 + int.from_bytes(data[33:37], "big")]
            return Image.frombytes("RGB", (size, size), pixels, "zip", "RGB")
        if kind == "JPEG":
            return Image.frombytes("RGB", (size, size), data, "jpeg", "RGB", "")
    except Exception:  # nearly anything, as from the readers
        return None
    return None


@lru_cache(maxsize=8)
def _headers(size: int) -> tuple[bytes, bytes]:
    """How a plain PNG begins, up to its pixels: 8-bit RGB; a JPEG's baseline frame header: three 8-bit components."""
    header = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return png, struct.pack(">HHBHHB", 0xFFC0, 17, 8, size, size, 3)


def _plain_tables(data: bytes) -> bool:
    """Whether a JFIF file has two quantization tables before the frame, then Huffman tables and the one scan.

    So it has neither EXIF nor a profile.
    """
    if not (data.startswith(b"\xff\xdb\x00\x43\x00", 20) and data.startswith(b"\xff\xdb\x00\x43\x01", 89)):
        return False
    at = 177
    while at < MOST_TABLES and data.startswith(b"\xff\xc4", at):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.startswith(SCAN, at) and data.find(SCAN, at + 2) < 0  # each further scan is work
