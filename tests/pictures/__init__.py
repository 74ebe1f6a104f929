"""Small pictures of every format, depth and orientation, made here, with what each shows."""

from tests.pictures.bmps import bmps
from tests.pictures.gifs import gifs
from tests.pictures.lossy import avifs, jpegs, webps
from tests.pictures.pngs import pngs
from tests.pictures.shown import Shown

MADE = {"PNG": pngs, "JPEG": jpegs, "WEBP": webps, "BMP": bmps, "GIF": gifs, "AVIF": avifs}
PICTURES: dict[str, Shown] = {f"{kind}: {name}": shown for kind, make in MADE.items() for name, shown in make()}
