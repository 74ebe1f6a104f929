"""BMPs, by hand: Pillow writes few of their kinds."""

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from tests.pictures.shown import HEIGHT, WIDTH, Numbers, Shown, over_white, packed

RANDOM = np.random.default_rng(4)
MASKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "5-6-5": (16, (0xF800, 0x7E0, 0x1F)),
    "5-5-5": (16, (0x7C00, 0x3E0, 0x1F)),
    "4-4-4": (16, (0xF00, 0xF0, 0xF)),
    "4-4-4-4": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "1-5-5-5": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "XRGB": (32, (0xFF0000, 0xFF00, 0xFF)),
    "XBGR": (32, (0xFF, 0xFF00, 0xFF0000)),
    "RGBX": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "ARGB": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "ABGR": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "10-10-10": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "11-11-10": (32, (0x7FF, 0x3FF800, 0xFFC00000)),
    "7-18-7": (32, (0xFE000000, 0x1FFFF80, 0x7F)),
    "2-3-1": (16, (0b11 << 8, 0b111 << 3, 1)),
    "overlapping": (16, (0xFF0, 0xFF, 0xF00)),
}
ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
WIDE = RANDOM.integers(0, 2**24, (HEIGHT, WIDTH))
SEEN = np.stack([WIDE >> 16, WIDE >> 8 & 255, WIDE & 255], axis=2)


def bmp(
    samples: Numbers,
    bits: int,
    palette: bytes = b"",
    masks: Sequence[int] = (),
    length: int = 40,
    compression: int = 0,
    top_down: bool = False,
    body: bytes | None = None,
) -> bytes:
    """Of samples [height, width], each the number that stands for a pixel; or of a compressed body."""
    height, width = samples.shape
    if length == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        size = (width, -height if top_down else height)
        colours = len(palette) // 4
        head = struct.pack("<IiiHHIIiiII", length, *size, 1, bits, compression, len(body or b""), 0, 0, colours, 0)
        head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(length, b"\0")
    if body is None:
        rows = samples if top_down else samples[::-1]
        body = b"".join(row + bytes(-len(row) % 4) for row in (_row(values, bits) for values in rows))
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + head + palette + body


def _row(values: Numbers, bits: int) -> bytes:
    if bits < 8:
        return packed(values[None, :, None], bits)[0]
    return b"".join(int(value).to_bytes(bits // 8, "little") for value in values)


def bmps() -> Iterator[tuple[str, Shown]]:
    for bits in (1, 2, 4, 8):
        values = RANDOM.integers(0, 2**bits, (HEIGHT, WIDTH))
        palette = RANDOM.integers(0, 256, (2**bits, 4), dtype=np.uint8)
        pixels = palette[values][..., 2::-1]
        yield f"{bits} bits", Shown(bmp(values, bits, palette.tobytes()), pixels)
        yield f"{bits} bits, top down", Shown(bmp(values, bits, palette.tobytes(), top_down=True), pixels)
        if bits != 2:
            yield f"{bits} bits of OS/2", Shown(bmp(values, bits, palette[:, :3].tobytes(), length=12), pixels)
        if bits in (4, 8):
            runs = _runs(values, bits)
            made = bmp(values, bits, palette.tobytes(), compression={8: 1, 4: 2}[bits], body=runs)
            yield f"{bits} bits in runs", Shown(made, pixels)
        yield f"{bits} bits, a palette too short", _of_short_palette(values, bits, palette)
    yield from _gaps()
    five = RANDOM.integers(0, 2**15, (HEIGHT, WIDTH))
    pixels = np.stack([_scaled(five >> shift, 5) for shift in (10, 5, 0)], axis=2)
    for length in (40, 52, 56, 108, 124):
        yield f"16 bits, header of {length}", Shown(bmp(five | 0x8000, 16, length=length), pixels)
    yield "16 bits, top down", Shown(bmp(five, 16, top_down=True), pixels)
    for bits in (24, 32):
        yield f"{bits} bits", Shown(bmp(WIDE, bits), SEEN)
        yield f"{bits} bits, top down", Shown(bmp(WIDE, bits, top_down=True), SEEN)
        yield f"{bits} bits, another header of OS/2", Shown(bmp(WIDE, bits, length=64), SEEN)
    yield "24 bits of OS/2", Shown(bmp(WIDE, 24, length=12), SEEN)
    yield "bytes after the end", Shown(bmp(WIDE, 24) + b"more", SEEN)
    yield from _masked()
    yield from _with_alpha()
    yield (
        "the last padding missing",
        Shown(bmp(WIDE, 24)[:-1], SEEN, browser="it leaves out the row that lacks padding"),
    )
    unplaced = bmp(WIDE, 24)[:10] + bytes(4) + bmp(WIDE, 24)[14:]
    yield "no place of its pixels", Shown(unplaced, SEEN, browser="it takes the header for pixels")


def _of_short_palette(values: Numbers, bits: int, palette: Numbers) -> Shown:
    half = len(palette) // 2
    data = bmp(values, bits, palette[:half].tobytes())
    return Shown(data, np.where((values < half)[..., None], palette[values][..., 2::-1], 0))


def _gaps() -> Iterator[tuple[str, Shown]]:
    """Runs that do not tell all pixels: what they leave out is black."""
    palette = RANDOM.integers(0, 256, (256, 4), dtype=np.uint8)
    for bits, compression, two in ((8, 1, (5, 5)), (4, 2, (5, 6))):
        told = np.full((HEIGHT, WIDTH), -1)
        told[-1, :3] = [two[0], two[1], two[0]]
        told[-2, 5:9] = told[-4, 2:] = 7
        run = two[0] << 4 | two[1] if bits == 4 else 5
        seven = 0x77 if bits == 4 else 7
        # A run, a step of two to the right and one up, a run, the end of its line, a step, a run beyond the line.
        body = bytes([3, run, 0, 2, 2, 1, 4, seven, 0, 0, 0, 2, 2, 1, 99, seven, 0, 1])
        seen = np.where((told >= 0)[..., None], palette[told][..., 2::-1], 0)
        data = bmp(told, bits, palette[: 2**bits].tobytes(), compression=compression, body=body)
        yield f"{bits} bits in runs with gaps", Shown(data, seen)
    lines = np.full((HEIGHT, WIDTH), 5)
    data = bmp(lines, 8, palette.tobytes(), compression=1, body=bytes([WIDTH, 5, 0, 0]) * HEIGHT)
    yield "8 bits in runs without an end", Shown(data, palette[lines][..., 2::-1])


def _masked() -> Iterator[tuple[str, Shown]]:
    for name, (bits, masks) in MASKS.items():
        values = RANDOM.integers(0, 2**bits, (HEIGHT, WIDTH))
        seen = np.stack([_behind(values, mask) for mask in masks], axis=2)
        for length in (40, 52, 56, 108, 124):
            if len(masks) == 4 and length < 56:
                continue
            made = bmp(values, bits, masks=masks, length=length, compression=3, top_down=length == 52)
            yield f"masks {name}, header of {length}", Shown(made, over_white(seen) if len(masks) == 4 else seen)
    why = "it refuses masks of 24 bits"
    yield "masks, 24 bits", Shown(bmp(WIDE, 24, masks=ARGB[:3], compression=3), SEEN, browser=why)
    yield "masks of 0", Shown(bmp(WIDE, 32, masks=(0, 0, 0), compression=3), 0 * SEEN)


def _with_alpha() -> Iterator[tuple[str, Shown]]:
    half, full = WIDE | 0x80000000, WIDE | 0xFF000000
    faint = over_white(np.dstack([SEEN, np.full((HEIGHT, WIDTH), 128)]))
    for length in (40, 56):
        data = bmp(half, 32, masks=ARGB, length=length, compression=6)
        yield f"alpha bit fields, header of {length}", Shown(data, faint)
    for length in (40, 52, 56):
        yield f"32 bits, the last of each not 0, header of {length}", Shown(bmp(half, 32, length=length), SEEN)
    why = "it shows nothing at all; who leaves alpha at 0 everywhere means none"
    for length in (108, 124):
        for name, values, seen in (("half", half, faint), ("full", full, SEEN)):
            data = bmp(values, 32, masks=ARGB, length=length)
            yield f"32 bits, {name} alpha by its mask alone, header of {length}", Shown(data, seen)
        yield f"32 bits, no mask, header of {length}", Shown(bmp(half, 32, length=length), SEEN)
        for compression in (0, 3):
            data = bmp(WIDE, 32, masks=ARGB, length=length, compression=compression)
            yield f"alpha 0 everywhere, header of {length}, {compression}", Shown(data, SEEN, browser=why)


def _behind(values: Numbers, mask: int) -> Numbers:
    low = (mask & -mask).bit_length() - 1
    return _scaled((values & mask) >> low, (mask >> low).bit_length())


def _scaled(values: Numbers, bits: int) -> Numbers:
    most = 2**bits - 1
    return (values & most) >> bits - 8 if bits > 8 else np.floor((values & most) * 255 / most + 0.5)


def _runs(values: Numbers, bits: int) -> bytes:
    """Runs of one pixel, absolute ones, ends of lines and of the picture."""
    body = b""
    for row in values[::-1]:
        few, rest = row[:5], row[5:]
        body += b"".join(bytes([1, value if bits == 8 else value << 4]) for value in few)
        content = packed(rest[None, :, None], bits)[0]
        body += bytes([0, len(rest)]) + content + bytes(len(content) % 2) + b"\0\0"
    return body + b"\0\1"
