"""Colours of another space than sRGB, such as a phone's Display P3, converted once the picture is small.

Only small profiles count, those of curves and a matrix: to prepare for one with tables takes tens of milliseconds.
"""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

PROFILE = "profile"
"""The key of an opened image's `info` that holds its profile, if that is to be converted."""
MOST_BYTES, MOST_KNOWN = 2**12, 64
WORK = 200_000
"""To prepare for a profile, in pixels of work; kept for the last ones seen."""
NEAR = 2
"""Levels: profiles no further from sRGB change nothing, among them those of sRGB itself."""
_known: dict[bytes, ImageCms.ImageCmsTransform | None] = {}


def usable(profile: bytes, mode: str) -> bool:
    """Whether a profile is one of RGB colours that is small enough, for an image of such colours."""
    return 128 < len(profile) <= MOST_BYTES and profile[16:20] == b"RGB " and mode in ("RGB", "RGBA", "RGBX", "P")


def is_known(profile: bytes) -> bool:
    """Whether nothing needs to be prepared for a profile."""
    return profile in _known


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An RGB image of a usable profile → sRGB; the image itself where that is the same, or the profile is damaged."""
    try:
        conversion = _known[profile]
    except KeyError:
        conversion = _conversion(profile)
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[profile] = conversion
    return image if conversion is None else ImageCms.applyTransform(image, conversion) or image


def _conversion(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """None for a profile that is damaged or near enough to sRGB."""
    levels = np.mgrid[0:256:51, 0:256:51, 0:256:51].reshape(3, -1).T.astype(np.uint8)
    probe = Image.fromarray(levels[None])
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        made = ImageCms.buildTransform(opened, _srgb(), "RGB", "RGB", flags=ImageCms.Flags.NOCACHE)  # for threads
        found = np.asarray(ImageCms.applyTransform(probe, made))
    except MemoryError:  # no other colours for that
        raise
    except Exception:  # lcms' own words, and what Pillow raises where it was built without it
        return None
    return made if np.abs(found[0].astype(int) - levels).max() > NEAR else None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
