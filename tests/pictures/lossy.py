"""JPEG, WebP and AVIF, of which some are lossless."""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.pictures.profiles import DISPLAY_P3, SRGB_LIKE, to_srgb
from tests.pictures.shown import HEIGHT, SMOOTH, UPRIGHT, WIDTH, Numbers, Shown, encode, exif, over_white

COLOUR = np.ascontiguousarray(SMOOTH[..., :3])
NOISE = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
ANIMATED: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(COLOUR[::-1])], "duration": 10_000}
EXACT = 0.001
"""Loss of a lossy format beside the same decoder's pixels."""


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def stored(data: bytes) -> Numbers:
    """By Pillow alone, without metadata."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def jpegs() -> Iterator[tuple[str, Shown]]:
    colour, grey = Image.fromarray(COLOUR), Image.fromarray(COLOUR).convert("L")
    inks = Image.frombytes("CMYK", (WIDTH, HEIGHT), SMOOTH.tobytes())
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey": (grey, {}),
        "grey, progressive": (grey, {"progressive": True}),
        "4:4:4": (colour, {"subsampling": 0}),
        "4:2:2": (colour, {"subsampling": 1}),
        "4:2:0": (colour, {"subsampling": 2}),
        "4:4:4, noise": (Image.fromarray(NOISE[..., :3]), {"subsampling": 0, "quality": 95}),
        "4:2:0, noise": (Image.fromarray(NOISE[..., :3]), {"subsampling": 2, "quality": 95}),
        "4:4:4, progressive": (colour, {"progressive": True, "subsampling": 0}),
        "4:2:0, progressive": (colour, {"progressive": True}),
        "restarts": (colour, {"restart_marker_blocks": 1}),
        "quality 20": (colour, {"quality": 20}),
        "quality 100": (colour, {"quality": 100}),
        "RGB, not YCbCr": (colour, {"keep_rgb": True}),
        "CMYK": (colour.convert("CMYK"), {}),
        "CMYK, four inks": (inks, {"quality": 95}),
        "CMYK, progressive": (inks, {"quality": 95, "progressive": True}),
    }
    for name, (image, options) in kinds.items():
        loss = 60 if "4:2:0, noise" in name else 12
        yield name, Shown(encode(image, "JPEG", **options), np.asarray(image.convert("RGB")), loss)
    yield from _jpeg_segments(encode(colour, "JPEG"), encode(inks, "JPEG", quality=95))


def _jpeg_segments(plain: bytes, cmyk: bytes) -> Iterator[tuple[str, Shown]]:
    """What stands beside the pixels, whole or not."""
    seen, frame, adobe = stored(plain), plain.index(b"\xff\xc0"), cmyk.index(b"Adobe")

    def with_exif(*blocks: bytes, at: int = 2) -> bytes:
        return plain[:at] + b"".join(segment(0xE1, b"Exif\0\0" + block) for block in blocks) + plain[at:]

    for order in "<>":
        for orientation, upright in UPRIGHT.items():
            yield (
                f"orientation {orientation}, {order}",
                Shown(with_exif(exif(orientation, order)), upright(seen), EXACT),
            )
    yield "orientation before the pixels", Shown(with_exif(exif(6), at=frame), UPRIGHT[6](seen), EXACT)
    for name, block in {
        "orientation 9": exif(9),
        "orientation, a byte": exif(6, kind=1),
        "orientation, a long number": exif(6, kind=4),
        "orientation, two numbers": exif(6, count=2),
    }.items():
        yield name, Shown(with_exif(block), seen, EXACT)
    yield "two orientations, the first is none", Shown(with_exif(exif(1), exif(6)), seen, EXACT)
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>')
    yield "orientation in XMP", Shown(plain[:2] + xmp + plain[2:], seen, EXACT)
    yield "a short JFIF segment", Shown(plain[:2] + segment(0xE0, b"JFIF\0") + plain[20:], seen, EXACT)
    yield "no JFIF segment", Shown(plain[:2] + plain[20:], seen, EXACT)
    why = "it leaves out the last rows, of which it waits for the end"
    for missing in (1, 2):
        yield f"without its last bytes, {missing}", Shown(plain[:-missing], seen, EXACT, why)
    yield "bytes after the end", Shown(plain + b"more", seen, EXACT)
    yield "zeros for the end", Shown(plain[:-2] + bytes(50), seen, EXACT)
    for transform in (0, 1):
        data = plain[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])) + plain[20:]
        yield f"Adobe's transform {transform}", Shown(data, stored(data), EXACT)
    for name, data in {
        "CMYK without Adobe's segment": cmyk[: adobe - 4] + cmyk[adobe - 2 + int.from_bytes(cmyk[adobe - 2 : adobe]) :],
        "YCCK": cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :],
    }.items():
        yield name, Shown(data, stored(data), EXACT)
    turned = with_exif(exif(6))
    data = turned[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + DISPLAY_P3) + turned[2:]
    yield "a profile, Display P3, turned", Shown(data, UPRIGHT[6](to_srgb(seen)), 1)
    data = plain[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + SRGB_LIKE) + plain[2:]
    yield "a profile, sRGB", Shown(data, seen, 1)


def webps() -> Iterator[tuple[str, Shown]]:
    rgb = np.ascontiguousarray(NOISE[..., :3])
    yield "lossless", Shown(encode(rgb, "WEBP", lossless=True), rgb)
    yield "lossless, alpha", Shown(encode(NOISE, "WEBP", lossless=True, exact=True), over_white(NOISE))
    yield "lossy", Shown(encode(COLOUR, "WEBP"), COLOUR, 12)
    yield "lossy, alpha", Shown(encode(SMOOTH, "WEBP"), over_white(SMOOTH), 12)
    yield "bytes after the end", Shown(encode(rgb, "WEBP", lossless=True) + b"more", rgb)
    p3 = encode(rgb, "WEBP", lossless=True, icc_profile=DISPLAY_P3)
    yield "a profile, Display P3", Shown(p3, to_srgb(rgb), 1)
    yield "animated, lossless", Shown(encode(COLOUR, "WEBP", lossless=True, **ANIMATED), COLOUR)
    yield "animated, lossy", Shown(encode(COLOUR, "WEBP", **ANIMATED), COLOUR, 12)
    blue = encode(NOISE, "WEBP", lossless=True, exact=True, background=(0, 0, 200, 255), **ANIMATED)
    yield "animated, a background", Shown(blue, over_white(NOISE))
    for orientation in UPRIGHT:
        made = encode(rgb, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(orientation))
        yield f"orientation {orientation}, which no browser heeds", Shown(made, rgb)


def avifs() -> Iterator[tuple[str, Shown]]:
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield subsampling, Shown(encode(COLOUR, "AVIF", subsampling=subsampling, quality=90), COLOUR, 6)
    grey = Image.fromarray(COLOUR).convert("L")
    yield "grey", Shown(encode(grey, "AVIF", quality=90), np.asarray(grey.convert("RGB")), 6)
    yield "4:0:0", Shown(encode(COLOUR, "AVIF", subsampling="4:0:0", quality=90), np.asarray(grey.convert("RGB")), 6)
    yield "limited range", Shown(encode(COLOUR, "AVIF", range="limited", quality=90), COLOUR, 6)
    yield "quality 100", Shown(encode(COLOUR, "AVIF", quality=100, subsampling="4:4:4"), COLOUR, 2)
    p3 = encode(COLOUR, "AVIF", quality=100, subsampling="4:4:4", icc_profile=DISPLAY_P3)
    yield "a profile, Display P3", Shown(p3, to_srgb(COLOUR), 3)
    for orientation, upright in UPRIGHT.items():
        block = Image.Exif()
        block[0x0112] = orientation  # Pillow writes it as irot and imir
        made = encode(COLOUR, "AVIF", quality=90, subsampling="4:4:4", exif=block)
        yield f"orientation {orientation}", Shown(made, upright(COLOUR), 6)
    other = Image.Exif()
    other[0x0113] = 6
    made = encode(COLOUR, "AVIF", quality=90, subsampling="4:4:4", exif=other)
    for before, after in ((b"\x13\1\3\0", b"\x12\1\3\0"), (b"\1\x13\0\3", b"\1\x12\0\3")):
        made = made.replace(before, after)
    yield "orientation in EXIF alone", Shown(made, COLOUR, 6)
    clear = SMOOTH.copy()
    clear[..., 3] = np.where(np.arange(WIDTH) < 8, 0, 255)
    yield "transparency", Shown(encode(clear, "AVIF", quality=95, subsampling="4:4:4"), over_white(clear), 6)
    why = "it stretches alpha as if it was of limited range, though the AV1 header says that it is of the full one"
    for premultiplied in (False, True):
        made = encode(SMOOTH, "AVIF", quality=95, subsampling="4:4:4", alpha_premultiplied=premultiplied)
        yield f"alpha{', premultiplied' * premultiplied}", Shown(made, over_white(SMOOTH), 6, browser=why)
