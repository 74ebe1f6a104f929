"""GIFs."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.pictures.shown import HEIGHT, WIDTH, Shown, encode

RANDOM = np.random.default_rng(2)


def gifs() -> Iterator[tuple[str, Shown]]:
    palette = RANDOM.integers(0, 256, (16, 3), dtype=np.uint8)
    values = RANDOM.integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
    image = Image.fromarray(values)
    image.putpalette(palette.tobytes())
    shown, clear = palette[values], np.where((values == 3)[..., None], 255, palette[values])
    plain, hole = encode(image, "GIF"), encode(image, "GIF", transparency=3, optimize=False)
    yield "plain", Shown(plain, shown)
    yield "interlaced", Shown(encode(image, "GIF", interlace=True), shown)
    yield (
        "two colours",
        Shown(encode(Image.fromarray(values > 7), "GIF"), np.where(values > 7, 255, 0)[..., None].repeat(3, 2)),
    )
    yield "transparency", Shown(hole, clear)
    others: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(180)], "duration": 10_000}
    yield "animated", Shown(encode(image, "GIF", **others), shown)
    yield "animated, transparency", Shown(encode(image, "GIF", transparency=3, **others), clear)
    yield "bytes after the end", Shown(plain + b"more", shown)
    yield "no end", Shown(plain[:-1], shown)
    frame = plain.index(b"," + struct.pack("<4H", 0, 0, WIDTH, HEIGHT))
    for size in ((10, 8), (0, 0)):
        yield (
            f"a frame larger than the picture of {size}",
            Shown(plain[:6] + struct.pack("<HH", *size) + plain[10:], shown),
        )
    for background in (0, 5):
        for data, seen, name in ((plain, shown, ""), (hole, clear, ", transparency")):
            frame = data.index(b"," + struct.pack("<4H", 0, 0, WIDTH, HEIGHT))
            head = data[:6] + struct.pack("<HH", WIDTH + 9, HEIGHT + 6) + data[10:11] + bytes([background])
            small = head + data[12 : frame + 1] + struct.pack("<HH", 4, 2) + data[frame + 5 :]
            whole = np.full((HEIGHT + 6, WIDTH + 9, 3), 255)
            whole[2 : 2 + HEIGHT, 4 : 4 + WIDTH] = seen
            yield f"a small frame, background {background}{name}", Shown(small, whole)
