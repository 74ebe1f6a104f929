"""A file without its metadata, and the one thing of it that counts: how the picture is to be turned.

Pillow's readers inflate, join and parse all metadata before anyone knows how many pixels there are, at costs out of all
proportion to the file. So they get what the pixels need and nothing else. Finding that is a walk over the file's parts
(chunks, segments or blocks), which looks into none of them but the few that may tell the orientation.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from msmlp.model.errors import UndecodableImageError
from msmlp.model.profiles import MOST_BYTES

FEWEST_PARTS, BYTES_PER_PART, BYTES_PER_BLOCK = 2**10, 2**8, 2**6
"""A file of n bytes may have FEWEST_PARTS + n / BYTES_PER_PART parts, a GIF, whose blocks are short,
FEWEST_PARTS + n / BYTES_PER_BLOCK. Ordinary encoders make far fewer."""
MOST_TABLES = 2**16
"""Bytes of a JPEG's tables and frame headers before its first scan; ordinary ones take less than 3,000."""
MOST_ENTRIES, MOST_EXIF = 512, 2**17
"""How far the orientation is looked for: entries of an EXIF block, bytes of a PNG's."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_PALETTE, _KEYS = 3, {0: 2, 2: 6}
"""A PNG's colour type of palettes; by colour type, the bytes of the one transparent colour."""
_NO_LENGTH = frozenset((*range(0xC0), *range(0xD0, 0xD9), 0xFF))
"""After 0xff in a JPEG: no marker, or one without content."""
_TABLES = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xE0)))
_SCAN, _LAST = 0xDA, frozenset((0xC8, 0xD9, 0xDA, *range(0xF0, 0xFE)))
"""The scan; with it the end, and extensions that libjpeg refuses. Pillow's reader goes on behind these."""
_NOT_PIXELS = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
"""Applications' segments and comments, without those of JFIF and Adobe: they tell how colours are stored."""
_COLOURS = {0xE0: 16, 0xEE: 14}
"""JFIF's and Adobe's segments, and the shortest that libjpeg heeds; Pillow fails at a shorter one."""
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0\1\1"
"""The second for a profile in one segment."""
_CONTROL, _DISPOSAL = b"\xf9\4", 0x1C
"""How the extension of a GIF begins that tells how a frame is shown, and the bits for what becomes of it afterwards."""
_TAG = 0x0112
_CHUNK, _SEGMENT = struct.Struct(">I4s").unpack_from, struct.Struct(">BBH").unpack_from


class Bare(NamedTuple):
    """A file for Pillow's readers. `orientation` is EXIF's, 1 to 8; None for a format whose metadata was not read.
    `profile`: of colours, if it is a small one."""

    data: bytes
    orientation: int | None
    profile: bytes = b""


def without_metadata(data: bytes) -> Bare:
    """The same picture without metadata, if it has any; UndecodableImageError for a file of too many parts."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data.startswith(b"WEBP", 8):
        return _webp(data)
    if data.startswith(b"GIF8"):
        data = _gif(data)
    return Bare(data, None)


def exif_of(orientation: int) -> bytes:
    """The smallest EXIF block that tells an orientation."""
    return _EXIF + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", _TAG, 3, 1, orientation, 0, 0)


class _Kept:
    """The parts of a file that stay, joined once and only if others go."""

    def __init__(self, data: bytes) -> None:
        self._data, self._from, self._kept = data, 0, list[memoryview]()

    def drop(self, start: int, end: int) -> None:
        if start > self._from:
            self._kept.append(memoryview(self._data)[self._from : start])
        self._from = end

    def joined(self) -> bytes:
        if not self._from:
            return self._data
        return b"".join((*self._kept, memoryview(self._data)[self._from :]))


def _parts(data: bytes, each: int = BYTES_PER_PART) -> Iterator[int]:
    """One number for each part that a file of this size may have, then the refusal."""
    most = FEWEST_PARTS + len(data) // each
    yield from range(most)
    raise UndecodableImageError(f"the file has more than {most} parts, the limit for one of {len(data)} bytes")


def _png(data: bytes) -> Bare:
    kept, at, exif, profile, seen = _Kept(data), 8, b"", b"", set[bytes]()
    for _ in _parts(data):
        if at + 8 > len(data):
            break
        length, kind = _CHUNK(data, at)
        end = at + 12 + length
        if kind == b"IEND":
            break
        if kind not in _PNG_PIXELS or (kind == b"tRNS" and not _is_heeded(data, at, end, seen)):
            kept.drop(at, end)
            if kind == b"eXIf" and not exif and b"IDAT" not in seen and _is_whole(data, at, end):
                exif = data[at + 8 : min(end - 4, at + 8 + MOST_EXIF)]
            elif kind == b"iCCP" and not seen & {b"iCCP", b"PLTE", b"IDAT"}:
                profile = _inflated_profile(data, at, end)
        seen.add(kind)
        at = end
    return Bare(kept.joined(), _orientation(exif), profile)


def _inflated_profile(data: bytes, at: int, end: int) -> bytes:
    """What a PNG's chunk iCCP has after a name and a method; nothing of a large or damaged one."""
    packed = data[at + 8 : min(end - 4, at + 8 + MOST_BYTES)].partition(b"\0")[2]
    with suppress(zlib.error):
        if end - at <= MOST_BYTES and _is_whole(data, at, end):
            profile = zlib.decompressobj().decompress(packed[1:], MOST_BYTES + 1)
            return profile if len(profile) <= MOST_BYTES else b""
    return b""


def _is_heeded(data: bytes, at: int, end: int, seen: set[bytes]) -> bool:
    """Whether a PNG's transparency counts for browsers: whole, in its place and long enough. Pillow fails at others."""
    colour = data[25] if len(data) > 25 else 0
    placed = not seen & {b"tRNS", b"IDAT"} and (colour != _PALETTE or b"PLTE" in seen)
    return placed and end - at - 12 >= _KEYS.get(colour, 0) and _is_whole(data, at, end)


def _is_whole(data: bytes, at: int, end: int) -> bool:
    """Whether a chunk has the checksum that it tells."""
    return data[end - 4 : end] == zlib.crc32(memoryview(data)[at + 4 : end - 4]).to_bytes(4, "big")


def _jpeg(data: bytes) -> Bare:
    kept, at, tables, told = _Kept(data), 2, 0, list[tuple[int, int]]()
    for _ in _parts(data):
        if at + 4 > len(data):
            break
        before, marker, length = _SEGMENT(data, at)
        end = at + 2 + max(2, length)
        if before != 0xFF or marker in _NO_LENGTH:  # as Pillow and libjpeg do, go on to what may be a marker
            end = data.find(b"\xff", at + 1 + (before == 0xFF != marker))
            if end < 0:
                break
            kept.drop(at, end)
        elif marker in _TABLES:
            tables += length
            if tables > MOST_TABLES:
                raise UndecodableImageError(f"the JPEG's tables have more bytes than the limit of {MOST_TABLES}")
        elif marker in _NOT_PIXELS or length < _COLOURS.get(marker, 0):
            kept.drop(at, end)
            if marker in (0xE1, 0xE2):
                told.append((at + 4, end))
        elif marker in _LAST:  # what follows is libjpeg's
            _check_scan(marker)
            break
        at = end
    exif = next((data[start + len(_EXIF) : end] for start, end in told if data.startswith(_EXIF, start)), b"")
    profile = next((data[start + len(_ICC) : end] for start, end in told if data.startswith(_ICC, start)), b"")
    return Bare(kept.joined(), _orientation(exif), profile)


def _check_scan(marker: int) -> None:
    if marker == 0xD9:
        raise UndecodableImageError("damaged image header: the JPEG ends before its first scan")
    if marker != _SCAN:
        raise UndecodableImageError(f"the JPEG uses an extension that is not supported (marker 0x{marker:02x})")


def _webp(data: bytes) -> Bare:
    """As it is: libwebp's reader is quick, and Pillow only copies what it finds. No browser turns a WebP."""
    at, profile = 12, b""
    for _ in _parts(data):
        if at + 8 > len(data):
            break
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data.startswith(b"ICCP", at) and length <= MOST_BYTES:
            profile = profile or data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return Bare(data, 1, profile)


def _gif(data: bytes) -> bytes:
    """Keep only the graphic control extensions before the first frame, with their disposal bits cleared: for a disposal
    Pillow allocates a byte per pixel as soon as it opens the file. Nothing else is left before that frame that it
    could read in another way than this walk."""
    at, parts, controls, others = 13, _parts(data, BYTES_PER_BLOCK), list[int](), list[tuple[int, int]]()
    if len(data) > at and data[10] & 128:
        at += 6 << (data[10] & 7)
    while at + 2 < len(data) and data[at] not in b",;":
        next(parts)
        start = at
        if data[at] != ord("!"):
            at += 1
        else:
            empty = data[at + 1] != 0xFE and not data[at + 2]  # is not the last block, but for a comment
            at += 3 if empty else 2
            while at < len(data) and data[at]:
                next(parts)
                at += 1 + data[at]
            at += 1
            if data[start + 1 : start + 3] == _CONTROL and at == start + 8 <= len(data):
                controls.append(start + 3)
                continue
        others.append((start, min(at, len(data))))
    if any(data[at] & _DISPOSAL for at in controls):
        bare = bytearray(data)
        for at in controls:
            bare[at] &= ~_DISPOSAL
        data = bytes(bare)
    kept = _Kept(data)
    for start, end in others:
        kept.drop(start, end)
    return kept.joined()


def _orientation(exif: bytes) -> int:
    """What EXIF tells; 1 if it tells none or none that exists. Browsers heed no other place, such as XMP."""
    found = _in_exif(exif) if exif else None
    return found if found is not None and 1 <= found <= 8 else 1


def _in_exif(exif: bytes) -> int | None:
    """The orientation in the first directory; None without one, and of a damaged block."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    with suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        entries = exif[start + 2 :][: 12 * min(count, MOST_ENTRIES)]
        for tag, kind, count, value in struct.iter_unpack(order + "HHIH2x", entries[: len(entries) // 12 * 12]):
            if tag == _TAG and (kind, count) == (3, 1):  # one short number; browsers heed no other
                return int(value)
    return None
