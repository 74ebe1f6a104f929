"""A JPEG that lacks its last bytes: as browsers do, it is shown if nothing of its scan is missing.

libjpeg fills what is missing with grey and says so to nobody. So the file is decoded with several endings: if all give
the same pixels, none of them was needed. Whole scans may be missing, too, of which the endings tell nothing: in a
progressive JPEG, or one with a scan for each component.
"""

import io
import re
from itertools import islice

from PIL import Image, ImageChops

SCAN, END = b"\xff\xda", b"\xff\xd9"
FILLS = (b"\0", b"\xff\0", b"\xaa")
"""Codes that a decoder in need of more would take. It takes less than FILL of them for all blocks of one place."""
FILL = 4096
_STOP = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
"""Any marker but restarts."""
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02..|\x0c\x03.{4}|\x0e\x04.{6})..(...)", re.DOTALL)
"""How a scan begins: marker, length, components, two bytes for each, the first and last coefficient, bits."""
_MOST_SCANS, _ALL = 2**10, 2**64 - 1
DECODINGS = 1 + len(FILLS)
UNENDED = "unended"
"""The key of an opened image's `info` that holds the file."""


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
    """Load an image that was opened `ended`, and compare it with how it looks after other endings; OSError if they
    differ."""
    image.load()
    data = image.info.pop(UNENDED).removesuffix(b"\xff")
    if not _all_scans(data, getattr(image, "layers", 1)):
        raise OSError("the file ends before its last scan")
    scale = getattr(image, "decoderconfig", None)
    for fill in FILLS:
        filled = b"".join((data, fill * FILL, _restart(data), fill * FILL, END))
        other = Image.open(io.BytesIO(filled), formats=("JPEG",))
        other.decodermaxblock = len(filled)
        if scale:
            other.draft(None, (other.width // scale[0], other.height // scale[0]))
        if other.size != image.size or ImageChops.difference(other, image).getbbox() is not None:
            raise OSError("the file ends within the picture")


def _all_scans(data: bytes, components: int) -> bool:
    """Whether scans tell the last bit of all coefficients of that many components."""
    told = dict[int, int]()
    for scan in islice(_SCAN.finditer(data), _MOST_SCANS):
        first, last, bits = scan[1]
        if not bits & 15:
            for component in scan[0][5:-3:2]:
                told[component] = told.get(component, 0) | (2 << last) - (1 << first)
    return len(told) >= components and all(places & _ALL == _ALL for places in told.values())


def _restart(data: bytes) -> bytes:
    """The restart marker that comes next: without it a decoder takes nothing more."""
    scan = data.rfind(SCAN)
    last = max(range(8), key=lambda number: data.rfind(b"\xff%c" % (0xD0 + number), scan))
    found = data.find(b"\xff%c" % (0xD0 + last), scan) >= 0
    return b"\xff%c" % (0xD0 + (last + 1) % 8 if found else 0xD0)
