"""PNGs, by hand: Pillow writes few of their kinds."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.pictures.profiles import DISPLAY_P3, SRGB_LIKE, to_srgb
from tests.pictures.shown import HEIGHT, UPRIGHT, WIDTH, Numbers, Shown, encode, exif, over_white, packed

RANDOM = np.random.default_rng(1)
NOISE = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
NOISE[3] = NOISE[0, 0]  # a row of the key colour
RGB = NOISE[..., :3]
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: first column and row, steps."""


def chunk(kind: bytes, content: bytes, checksum: bytes | None = None) -> bytes:
    right = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + (checksum or right)


def png(
    samples: Numbers, depth: int, colour: int, *chunks: bytes, interlaced: bool = False, last: bytes = b""
) -> bytes:
    """`chunks` come before the pixels, `last` after them."""
    height, width = samples.shape[:2]
    samples = samples.reshape(height, width, -1).astype(np.int64)
    steps = PASSES if interlaced else ((0, 0, 1, 1),)
    parts = [samples[top::down, left::right] for left, top, right, down in steps]
    rows = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, depth))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    rest = chunk(b"IDAT", zlib.compress(rows)) + last + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + rest


def pngs() -> Iterator[tuple[str, Shown]]:
    for interlaced in (False, True):
        for depth in (1, 2, 4, 8, 16):
            for name, shown in _of_depth(depth, interlaced):
                yield f"{name}, {depth} bits{', interlaced' * interlaced}", shown
    yield from _keys()
    yield from _metadata()
    frames = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])], "duration": 10_000}
    yield "animated", Shown(encode(RGB, "PNG", **frames), RGB)
    why = "it shows the first frame of the animation, other readers the picture before it"
    other = encode(RGB, "PNG", default_image=True, **frames | {"append_images": [Image.fromarray(RGB[::-1])] * 2})
    yield "animated, with a picture before it", Shown(other, RGB, browser=why)


def _of_depth(depth: int, interlaced: bool) -> Iterator[tuple[str, Shown]]:
    """Every kind of colour that has this depth."""
    most = 2**depth - 1
    samples = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH, 4))
    samples[3] = samples[0, 0]
    levels = samples >> 8 if depth == 16 else samples * 255 // most

    def made(colour: int, count: int, *chunks: bytes) -> bytes:
        return png(samples[..., :count], depth, colour, *chunks, interlaced=interlaced)

    def keyed(count: int) -> Numbers:
        hit = (samples[..., :count] == samples[0, 0, :count]).all(axis=2, keepdims=True)
        return np.where(hit, 255, np.broadcast_to(levels[..., :count], (HEIGHT, WIDTH, 3)))

    yield "grey", Shown(made(0, 1), levels[..., [0, 0, 0]])
    yield "grey with a key", Shown(made(0, 1, chunk(b"tRNS", struct.pack(">H", samples[0, 0, 0]))), keyed(1))
    if depth <= 8:
        palette = RANDOM.integers(0, 256, (most + 1, 4), dtype=np.uint8)
        colours, some = chunk(b"PLTE", palette[:, :3].tobytes()), (most + 1) // 2
        alpha = palette[:, 3].tobytes()
        yield "palette", Shown(made(3, 1, colours), palette[samples[..., 0], :3])
        yield "palette, alpha", Shown(made(3, 1, colours, chunk(b"tRNS", alpha)), over_white(palette[samples[..., 0]]))
        palette[some:, 3] = 255
        few = made(3, 1, colours, chunk(b"tRNS", alpha[:some]))
        yield "palette, alpha of some", Shown(few, over_white(palette[samples[..., 0]]))
    if depth >= 8:
        yield "RGB", Shown(made(2, 3), levels[..., :3])
        yield "RGB with a key", Shown(made(2, 3, chunk(b"tRNS", struct.pack(">3H", *samples[0, 0, :3]))), keyed(3))
        yield "RGBA", Shown(made(6, 4), over_white(levels))
        yield "grey and alpha", Shown(made(4, 2), over_white(levels[..., [0, 0, 0, 1]]))


def _keys() -> Iterator[tuple[str, Shown]]:
    """Transparency as no encoder should write it."""
    grey, key, other = NOISE[..., :1], struct.pack(">H", NOISE[0, 0, 0]), struct.pack(">H", NOISE[1, 0, 0])
    wide = struct.pack(">3H", *RGB[0, 0])
    plain, clear = NOISE[..., [0, 0, 0]], np.where(grey == grey[0, 0], 255, NOISE[..., [0, 0, 0]])
    white = np.where((RGB[0, 0] == RGB).all(axis=2, keepdims=True), 255, RGB)
    for length in (0, 1):
        yield f"grey, a key of {length} bytes", Shown(png(grey, 8, 0, chunk(b"tRNS", key[:length])), plain)
    for length in (0, 2, 5):
        yield f"RGB, a key of {length} bytes", Shown(png(RGB, 8, 2, chunk(b"tRNS", wide[:length])), RGB)
    yield "grey, a key and more", Shown(png(grey, 8, 0, chunk(b"tRNS", key + b"more")), clear)
    yield "RGB, a key and more", Shown(png(RGB, 8, 2, chunk(b"tRNS", wide + b"more")), white)
    yield "grey, two keys", Shown(png(grey, 8, 0, chunk(b"tRNS", key), chunk(b"tRNS", other)), clear)
    yield "a key after the pixels", Shown(png(RGB, 8, 2, last=chunk(b"tRNS", wide)), RGB)
    yield "a key with a bad checksum", Shown(png(RGB, 8, 2, chunk(b"tRNS", wide, b"sums")), RGB)
    yield (
        "RGB, a key above its depth",
        Shown(png(RGB, 8, 2, chunk(b"tRNS", b"".join(b"\1" + b for b in _each(wide)))), white),
    )
    yield "RGBA with a key", Shown(png(NOISE, 8, 6, chunk(b"tRNS", wide)), over_white(NOISE))
    two = NOISE[..., 0] & 3
    why = "it compares the upper bits too, which the standard leaves out"
    yield (
        "grey, a key above its depth",
        Shown(
            png(two, 2, 0, chunk(b"tRNS", struct.pack(">H", 5))),
            np.where(two == 1, 255, two * 85)[..., None].repeat(3, 2),
            browser=why,
        ),
    )
    palette = NOISE[1, :4]
    colours, alpha = chunk(b"PLTE", palette[:, :3].tobytes()), chunk(b"tRNS", palette[:, 3].tobytes() + b"more")
    yield "palette, alpha of more", Shown(png(two, 2, 3, colours, alpha), over_white(palette[two]))
    yield "palette after its alpha", Shown(png(two, 2, 3, alpha, colours), palette[two, :3])
    yield "palette, no alpha", Shown(png(two, 2, 3, colours, chunk(b"tRNS", b"")), palette[two, :3])
    half = np.where((two < 2)[..., None], palette[two, :3], 0)
    why = "it takes another colour; the standard leaves it open"
    yield "palette too short", Shown(png(two, 2, 3, chunk(b"PLTE", palette[:2, :3].tobytes())), half, browser=why)


def _each(numbers: bytes) -> list[bytes]:
    """The low byte of each number of two."""
    return [numbers[at : at + 1] for at in range(1, len(numbers), 2)]


def _metadata() -> Iterator[tuple[str, Shown]]:
    """What stands beside the pixels, whole or not."""
    for order in "<>":
        for orientation, upright in UPRIGHT.items():
            turned = png(RGB, 8, 2, chunk(b"eXIf", exif(orientation, order)))
            yield f"orientation {orientation}, {order}", Shown(turned, upright(RGB))
    turn = exif(6)
    digits = b"\nexif\n%8d\n" % (len(turn) + 6) + (b"Exif\0\0" + turn).hex().encode() + b"\n"
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    waste = zlib.compress(bytes(3 * 2**19))
    plain = {
        "two orientations, the first is none": (chunk(b"eXIf", exif(1)), chunk(b"eXIf", turn)),
        "orientation with a bad checksum": (chunk(b"eXIf", turn, b"sums"),),
        "orientation as in a JPEG": (chunk(b"eXIf", b"Exif\0\0" + turn),),
        "orientation as a text": (chunk(b"tEXt", b"Raw profile type exif\0" + digits),),
        "orientation as a compressed text": (chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(digits)),),
        "orientation in XMP": (chunk(b"iTXt", xmp),),
        "a text with a bad checksum": (chunk(b"tEXt", b"a\0b", b"sums"),),
        "a text of 1.5 MiB": (chunk(b"zTXt", b"a\0\0" + waste),),
        "an international text of 1.5 MiB": (chunk(b"iTXt", b"a\0\1\0\0\0" + waste),),
        "a text of unknown compression": (chunk(b"zTXt", b"a\0\7" + waste),),
        "a profile of 1.5 MiB": (chunk(b"iCCP", b"a\0\0" + waste),),
        "a profile with a bad checksum": (chunk(b"iCCP", b"a\0\0" + waste, b"sums"),),
        "a background": (chunk(b"bKGD", bytes(6)),),
        "significant bits": (chunk(b"sBIT", b"\5\5\5"),),
        "suggested colours": (chunk(b"PLTE", RGB[0, :9].tobytes()),),
    }
    for name, profile, pixels in (("Display P3", DISPLAY_P3, to_srgb(RGB)), ("sRGB", SRGB_LIKE, RGB)):
        yield f"a profile, {name}", Shown(png(RGB, 8, 2, chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))), pixels, 1)
    for name, chunks in plain.items():
        yield name, Shown(png(RGB, 8, 2, *chunks), RGB)
    yield "orientation after the pixels", Shown(png(RGB, 8, 2, last=chunk(b"eXIf", turn)), RGB)
    whole = png(RGB, 8, 2)
    yield "nothing after the pixels", Shown(whole[:-12], RGB)
    yield "bytes after the end", Shown(whole + b"more", RGB)
    yield "pixels with a bad checksum", Shown(whole[:-16] + b"sums" + whole[-12:], RGB)
    yield "an end with a bad checksum", Shown(whole[:-4] + b"sums", RGB)
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    yield "gamma", Shown(png(RGB, 8, 2, gamma), RGB, browser="it heeds gamma")
