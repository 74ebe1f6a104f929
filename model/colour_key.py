"""The one colour of a grey or RGB PNG that is declared transparent (tRNS), in the numbers of its pixels.

Pillow gives the key as it is in the file and the pixels scaled to 8 bits: at 2 and 4 bits they do not meet, and of
16-bit colours many have the key's high bytes.
"""

import io

import numpy as np
from PIL import Image, ImageFile

KEY = "colour key"
"""The key of an opened image's `info`: the colour of a 16-bit RGB, and the same file opened for its low bytes."""
STRIP_PIXELS = 2**16
_SCALES = {"L;2": (3, 85), "L;4": (15, 17), "L": (255, 1)}


def scale_key(image: ImageFile.ImageFile, data: bytes) -> None:
    """Let an opened PNG's `info` tell its key in the numbers of its pixels; `data` is the file."""
    key, raw = image.info.get("transparency"), image.tile[0].args if image.tile else ""
    if isinstance(key, int) and raw in _SCALES:
        mask, scale = _SCALES[raw]
        image.info["transparency"] = (key & mask) * scale
    elif isinstance(key, tuple) and raw == "RGB":
        image.info["transparency"] = tuple(each & 255 for each in key)
    elif isinstance(key, tuple) and raw == "RGB;16B":
        low = Image.open(io.BytesIO(data), formats=("PNG",))
        low.tile = [part._replace(args="RGB;16L") for part in low.tile]
        del image.info["transparency"]
        image.info[KEY] = key, low


def whiten_key(image: Image.Image) -> None:
    """Load a 16-bit RGB image and paint its key white, strip by strip."""
    image.load()
    key, low = image.info.pop(KEY)
    low.load()
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        high, rest = (np.asarray(each.crop(box), np.uint16) for each in (image, low))
        hit = ((high << 8 | rest) == key).all(axis=2)
        if hit.any():
            image.paste((255, 255, 255), box, Image.fromarray(hit.astype(np.uint8) * 255))
