"""What of an AVIF is bounded before its decoder sees it.

The container tells the picture's size, but the decoder goes by the AV1 data within, which may be a thousand times as
large, or hold a thousand frames before the one that is shown. So the items of pixels are walked first.
"""

import struct
from collections import deque
from collections.abc import Iterator

from PIL import AvifImagePlugin, Image

from msmlp.model.errors import UndecodableImageError

SUPPORTED: bool = AvifImagePlugin.SUPPORTED
"""Whether this Pillow has a decoder."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the service has threads of its own
MOST_ITEMS, MOST_UNITS = 2**10, 2**6
"""Boxes of a box, parts of all items, units of an item's AV1 data; ordinary files have some ten."""
MOST_LINKS = 2**12
"""Bytes that tell which items and properties belong together; ordinary files have some 50."""
FRAMES = 4
"""Two layers of colour and of transparency; all frames together may have this many times the picture's pixels."""
MARGIN = 2**16
"""Pixels beside them, for a thumbnail."""
PIXELS = "frame pixels"
"""The key of an opened image's `info`: the pixels of its frames."""
_Box = tuple[bytes, int, int]


def is_avif(data: bytes) -> bool:
    """Whether Pillow may take a file for an AVIF."""
    return SUPPORTED and data.startswith((b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"), 4)


def without_texts(data: bytes) -> tuple[bytes, int]:
    """The file for Pillow, which finds no EXIF and XMP in it, and the pixels of all AV1 frames in it."""
    try:
        return _walk(data)
    except (struct.error, ValueError, IndexError, KeyError):
        raise UndecodableImageError("damaged AVIF container") from None


def check_frames(image: Image.Image, pixels: int) -> None:
    """Refuse frames of many more pixels than the header tells; else note their number in `info`."""
    if pixels > FRAMES * image.width * image.height + MARGIN:
        raise UndecodableImageError(
            f"the AVIF's frames have {pixels} pixels, many more than its {image.width}x{image.height}"
        )
    image.info[PIXELS] = pixels


def _walk(data: bytes) -> tuple[bytes, int]:
    outer = {kind: (start, end) for kind, start, end in _boxes(data, 0, len(data))}
    if b"moov" in outer:  # its frames are elsewhere
        raise UndecodableImageError("an AVIF sequence, which is not read; AVIF pictures are")
    start, end = outer[b"meta"]
    boxes = list(_boxes(data, start + 4, end))
    _check_links(data, boxes)
    parts = {kind: (start, end) for kind, start, end in boxes}
    bare, pixels, pictures = bytearray(data), 0, set()
    start, end = parts[b"iinf"]
    for kind, at, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe":
            number, place = (
                struct.unpack_from(">H" if data[at] == 2 else ">I", data, at + 4)[0],
                8 if data[at] == 2 else 10,
            )
            kind = data[at + place : at + place + 4]
            if kind == b"av01":
                pictures.add(number)
            elif kind in (b"Exif", b"mime"):
                bare[at + place : at + place + 4] = b"skip"
    left = len(data)
    for number, extents in _extents(data, *parts[b"iloc"]):
        if number in pictures:
            left -= sum(length for _, _, length in extents)
            if left < 0:
                raise IndexError
            base = parts[b"idat"][0] if extents[0][0] else 0
            pixels += _frames(b"".join(data[base + at : base + at + length] for _, at, length in extents))
    return bytes(bare), pixels


def _check_links(data: bytes, boxes: list[_Box]) -> None:
    """The decoder searches all items for each that a link names, and makes those that it does not find."""
    links = [(start, end) for kind, start, end in boxes if kind == b"iref"]
    for kind, start, end in boxes:
        if kind == b"iprp":
            for inner, at, stop in _boxes(data, start, end):
                if inner == b"ipma":
                    links.append((at, stop))
                elif inner == b"ipco":
                    deque(_boxes(data, at, stop), maxlen=0)  # counts them
    if sum(end - start for start, end in links) > MOST_LINKS:
        raise UndecodableImageError(f"the AVIF's links between items have more bytes than the limit of {MOST_LINKS}")


def _boxes(data: bytes, at: int, end: int) -> Iterator[_Box]:
    """Kind, start and end of the content of each box; no kind but free ones twice."""
    seen = set()
    for _ in range(MOST_ITEMS):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,), start = struct.unpack_from(">Q", data, start), at + 16
        stop = at + size if size else end
        if stop > end or stop < start or (kind in seen and kind in (b"meta", b"iinf", b"iloc", b"idat")):
            raise IndexError
        seen.add(kind)
        yield kind, start, stop
        at = stop
    raise _too_many()


def _too_many(most: int = MOST_ITEMS) -> UndecodableImageError:
    return UndecodableImageError(f"the AVIF has more parts than the limit of {most}")


def _extents(data: bytes, at: int, end: int) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Of each item its number, and for each of its parts: whether it is in the box idat, offset, length."""
    version, sizes = data[at], struct.unpack_from(">H", data, at + 4)[0]
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    index = index if version else 0
    many = 2 if version < 2 else 4
    at += 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > end:
            raise IndexError
        at += size
        return int.from_bytes(data[at - size : at], "big")

    parts = 0
    for _ in range(number(many)):
        item, method = number(many), number(2) & 15 if version else 0
        number(2)
        start = number(base)
        extents = []
        for _ in range(number(2)):
            parts += 1
            if parts > MOST_ITEMS:
                raise _too_many()
            number(index)
            extents.append((method, start + number(offset), number(length)))
        if method > 1 or not extents or not all(length for _, _, length in extents):
            raise IndexError
        yield item, extents


def _frames(stream: bytes) -> int:
    """The pixels of all frames of an AV1 stream, shown or not."""
    at, frames, largest = 0, 0, 0
    for _ in range(MOST_UNITS):
        if at >= len(stream):
            return frames * largest
        head = stream[at]
        at += 2 if head & 4 else 1
        size = len(stream) - at
        if head & 2:
            size = 0
            for shift in range(0, 56, 7):
                byte = stream[at]
                at, size = at + 1, size | (byte & 127) << shift
                if byte < 128:
                    break
        kind = head >> 3 & 15
        if kind == 1:
            largest = max(largest, _most_pixels(stream[at : at + min(size, 64)]))
        elif kind in (3, 6, 7):
            frames += 1
        at += size
    raise _too_many(MOST_UNITS)


def _most_pixels(sequence: bytes) -> int:
    """Width x height in an AV1 sequence header."""
    bits, at = int.from_bytes(sequence.ljust(64, b"\0"), "big"), 512

    def take(count: int) -> int:
        nonlocal at
        at -= count
        return bits >> at & ((1 << count) - 1)

    take(4)
    if take(1):  # a still picture's short header
        take(5)
    else:
        if take(1):
            raise UndecodableImageError("an AVIF with timing, which is not read")
        delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delays and take(1):
                take(4)
    width, height = take(4) + 1, take(4) + 1
    return (take(width) + 1) * (take(height) + 1)
