"""A JPEG that lacks its last bytes: as browsers do, it is shown if nothing of its scan is missing.

libjpeg fills what is missing with grey and says so to nobody. So the file is decoded with several endings: if all give
the same pixels, none of them was needed.
"""

import io
import re

from PIL import Image, ImageChops

SCAN, END = b"\xff\xda", b"\xff\xd9"
FILLS = (b"\0", b"\xff\0", b"\xaa")
"""Codes that a decoder in need of more would take. It takes less than FILL of them for all blocks of one place."""
FILL = 4096
_STOP = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
"""Any marker but restarts."""
DECODINGS = 1 + len(FILLS)
UNENDED = "unended"
"""The key of an opened image's `info` under which the file stands."""


def is_unended(data: bytes) -> bool:
    """Whether a file is a JPEG that has a scan and no end after it, nor what would stop a decoder there as well."""
    if not data.startswith(b"\xff\xd8\xff") or data.rfind(END) >= 0:
        return False
    scan = data.rfind(SCAN)
    return scan >= 0 and not _STOP.search(data, scan + 2)


def ended(data: bytes) -> bytes:
    """The file with the end that it lacks, whole or in part."""
    return data.removesuffix(b"\xff") + END


def check_whole(image: Image.Image) -> None:
    """Compare an image that was opened `ended`, and is loaded now, with how it looks after other endings; OSError if
    they differ."""
    data = image.info.pop(UNENDED).removesuffix(b"\xff")
    scale = getattr(image, "decoderconfig", None)
    for fill in FILLS:
        other = Image.open(
            io.BytesIO(b"".join((data, fill * FILL, _restart(data), fill * FILL, END))), formats=("JPEG",)
        )
        if scale:
            other.draft(None, (other.width // scale[0], other.height // scale[0]))
        if other.size != image.size or ImageChops.difference(other, image).getbbox() is not None:
            raise OSError("the file ends within the picture")


def _restart(data: bytes) -> bytes:
    """The restart marker that comes next: without it a decoder takes nothing more."""
    scan = data.rfind(SCAN)
    last = max(range(8), key=lambda number: data.rfind(b"\xff%c" % (0xD0 + number), scan))
    found = data.find(b"\xff%c" % (0xD0 + last), scan) >= 0
    return b"\xff%c" % (0xD0 + (last + 1) % 8 if found else 0xD0)
