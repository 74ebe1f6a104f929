"""Small pictures of every format, depth and orientation, made here, with what each shows."""

import numpy as np

from msmlp.model.preprocess import decode
from msmlp.model.profiles import PROFILE, to_srgb
from tests.pictures.bmps import bmps
from tests.pictures.gifs import gifs
from tests.pictures.lossy import avifs, jpegs, webps
from tests.pictures.pngs import pngs
from tests.pictures.shown import Numbers, Shown

MADE = {"PNG": pngs, "JPEG": jpegs, "WEBP": webps, "BMP": bmps, "GIF": gifs, "AVIF": avifs}
PICTURES: dict[str, Shown] = {f"{kind}: {name}": shown for kind, make in MADE.items() for name, shown in make()}


def seen(data: bytes) -> Numbers:
    """The RGB pixels [height, width, 3] of which the service makes its input."""
    image = decode(data)
    return np.asarray(to_srgb(image, image.info[PROFILE]) if PROFILE in image.info else image)
