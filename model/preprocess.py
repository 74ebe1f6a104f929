"""From an encoded image to an array: the only way, for training, evaluation and serving alike.

The rules (docs/http.md repeats them for callers):
- formats: PNG, JPEG, WebP, BMP, GIF, AVIF; determined by the content, not by a name or a header;
- orientation is applied where browsers do: EXIF's of a JPEG and of a PNG (eXIf, before its pixels), an AVIF's own (irot
  and imir); none that is elsewhere, in a WebP or in a damaged block; of an animation the first frame is used;
- what the first frame of a GIF leaves free is white;
- colours of a small RGB profile (curves and a matrix, as Display P3) are converted to sRGB, after all else; a larger or
  damaged one, one of grey or CMYK, and gamma are left out;
- all other metadata is left out, so that it costs nothing; a file of far more parts than encoders make is refused;
- grey and palette images become RGB; transparent pixels, also those of a PNG's key colour, are blended with white;
  Pillow converts CMYK;
- a BMP of any colour masks is read; alpha that is 0 everywhere is none; where its runs leave gaps it is black;
- 16-bit grey keeps its high byte (65535 → 255);
- other sizes: the shorter side is scaled to the model's size (bicubic, antialiased), then the centre square is cropped;
  for an imported cascade as its manifest says (model/views.py);
- a JPEG much larger than needed is decoded at a reduced scale, never below twice the model's size; for an imported
  cascade never;
- a JPEG that lacks its end and nothing of the picture is read, one that ends within the picture or between its scans
  is damaged.
"""

import io
import re
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError, WebPImagePlugin
from pydantic import BaseModel, ConfigDict, Field, model_validator

from msmlp.model import avif
from msmlp.model.bmp import open_odd_bmp, without_surplus_colours
from msmlp.model.colour_key import KEY, scale_key, whiten_key
from msmlp.model.errors import ImageTooLargeError, UndecodableImageError
from msmlp.model.foreign import described
from msmlp.model.metadata import exif_of, without_metadata
from msmlp.model.plain import plain_image
from msmlp.model.profiles import PROFILE, usable
from msmlp.model.unended import UNENDED, check_whole, ended, is_unended
from msmlp.model.views import LARGEST, Resize, Target, View, views_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", *(("AVIF",) if avif.SUPPORTED else ()))
# Else the first picture, or the first WebP, would wait until Pillow has loaded its readers, all that it has.
Image.preinit()
WebPImagePlugin  # noqa: B018
MAX_PIXELS = 32_000_000
"""The default limit on width x height of an encoded image."""
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pillow's own limit: for training data, and the largest that a setting allows."""
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
"""How files begin that Pillow's readers may give up without a word."""
MANY_BYTES, MOST_PARTS = 2**18, 500_000
"""Files of ordinary encoders have fewer parts, even of 64 MiB; more would keep Pillow's readers busy for seconds."""
ENTROPY = 0.1
"""Work to read the coefficients of a JPEG's pixel, at whatever scale it is then decoded; in decoded pixels."""
JPEG_SCAN = re.compile(rb"\xff\xda\0(?:\x06\0|\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""How a scan begins: marker, length, components. The marker alone is found by chance in what may follow a picture."""
XMP = frozenset(("xmp", "XML:com.adobe.xmp"))
"""Where Pillow keeps it."""
STRIP_PIXELS = 2**18
"""Transparent pixels that are blended at once, in about a millisecond."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(BaseModel):
    """How an image becomes the network's input; stored in the manifest. mean, std: per channel, of pixels / 255."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=1)
    mean: tuple[Finite, Finite, Finite] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.25, 0.25, 0.25)
    resize: Literal["center-crop"] | Resize = "center-crop"

    @model_validator(mode="after")
    def _resize_fits(self) -> Self:
        largest = LARGEST * self.size
        if isinstance(self.resize, Resize) and not self.size <= self.resize.shorter_side <= largest:
            raise ValueError(
                f"the shorter side is scaled to {self.resize.shorter_side} pixels for a crop of {self.size}; "
                f"expected {self.size} to {largest}"
            )
        return self

    @property
    def view(self) -> View:
        return View(self.size, None if self.resize == "center-crop" else self.resize)


class _Parts(io.BytesIO):
    """A large file, whose reader gives up after MOST_PARTS reads: it reads each marker, chunk or block on its own."""

    left = MOST_PARTS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("the file has too many parts")
        return super().read(size)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, near: int | None = None) -> Image.Image:
    """An encoded image → an upright RGB image; ImageTooLargeError or UndecodableImageError.

    `max_pixels`: the largest width x height allowed, checked in the header before anything is decoded. `near`: the size
    the image will be scaled to, so that a large JPEG is decoded, and counts, at a fraction.
    """
    image = open_image(data, max_pixels=max_pixels, near=near)
    reduce_scale(image, near)
    return decode_opened(image)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, near: int | None = None) -> ImageFile.ImageFile:
    """The first half of `decode`: reads the header only and checks the size. `reduce_scale` is not called yet."""
    data, orientation, profile = without_metadata(data)
    data, frames = avif.without_texts(data) if avif.is_avif(data) else (data, 0)
    unended = is_unended(data)
    image = _opened(ended(data) if unended else data, max_pixels)
    width, height = image.size
    if width * height > max_pixels and (near is None or not _cheap(image, data, near, max_pixels)):
        raise ImageTooLargeError(f"image is {width}x{height} = {width * height} pixels, the limit is {max_pixels}")
    if image.format in ("JPEG", "MPO"):
        # At once: libjpeg would look at bytes that fill a scan again with every block.
        image.decodermaxblock = max(image.decodermaxblock, len(data))
    if image.format == "AVIF":
        avif.check_frames(image, frames)
    elif image.format == "PNG":
        if image.mode == "P" and image.palette is None:
            raise UndecodableImageError("damaged image header: a PNG of palette colours without its palette")
        scale_key(image, data)
    if unended:
        image.info[UNENDED] = data
    _keep_metadata(image, orientation, profile)
    return image


def _opened(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The image, its header read."""
    try:
        if data.startswith(b"BM"):
            if image := open_odd_bmp(data):
                return image
            data = without_surplus_colours(data)
        return Image.open(_Parts(data) if len(data) > MANY_BYTES else io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLargeError(f"image has more pixels than the limit of {max_pixels}") from None
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise UndecodableImageError("damaged image header") from None
        raise UndecodableImageError(f"not a readable image{described(data)}; formats: {', '.join(FORMATS)}") from None
    except MemoryError:  # the image may be whole
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged header
        raise UndecodableImageError(_words("damaged image header", error)) from None


def _keep_metadata(image: ImageFile.ImageFile, orientation: int | None, profile: bytes) -> None:
    """Let Pillow turn an image as EXIF tells, let model/views.py convert its colours, and nothing else."""
    image.info.pop("xmp", None)
    profile = image.info.pop("icc_profile", profile) if image.format == "AVIF" else profile
    if profile and usable(profile, image.mode):
        image.info[PROFILE] = profile
    if orientation is not None:
        image.info.pop("exif", None)  # of a WebP; it may be as large as the file
        if orientation != 1:
            image.info["exif"] = exif_of(orientation)


def _cheap(image: ImageFile.ImageFile, data: bytes, near: int, max_pixels: int) -> bool:
    """Whether a JPEG is so much larger than needed that it is no more work than `max_pixels` are.

    It has one scan: with more, all its coefficients are in memory, at any scale.
    """
    if min(image.size) < 4 * near or image.format != "JPEG" or image.info.get("progressive"):
        return False
    scans = JPEG_SCAN.findall(data)
    scale = next(scale for scale in (8, 4, 2) if min(image.size) >= 2 * near * scale)
    full = image.width * image.height
    return (
        len(scans) == 1
        and scans[0][-1] == getattr(image, "layers", 0)
        and full / scale**2 + ENTROPY * full <= max_pixels
    )


def reduce_scale(image: Image.Image, near: int | None) -> None:
    """Let a much larger JPEG, opened and not yet decoded, be decoded at a fraction of its size. Call it once."""
    # Below four times the size no reduced scale fits. MPO: a phone's JPEG with a second image.
    if near and min(image.size) >= 4 * near and image.format in ("JPEG", "MPO"):
        image.draft(None, (2 * near, 2 * near))


def decode_opened(image: ImageFile.ImageFile) -> Image.Image:
    """The second half of `decode`: the pixels."""
    frame = image.tile[0].extents if image.format == "GIF" and image.tile else None
    try:
        if UNENDED in image.info:
            check_whole(image)
        if KEY in image.info:
            whiten_key(image)
        rgb = upright_rgb(image)
        if frame and frame != (0, 0, *rgb.size):  # Pillow fills the rest with some colour
            white = Image.new("RGB", rgb.size, "white")
            white.paste(rgb.crop(frame), frame)
            return white
        if PROFILE in image.info:
            rgb.info[PROFILE] = image.info[PROFILE]
        return rgb
    except MemoryError:
        raise
    except Exception as error:  # as above: truncation, bad checksums, impossible sizes
        raise UndecodableImageError(_words(f"damaged or truncated {image.format} image", error)) from None


def _words(fault: str, error: Exception) -> str:
    """The fault, with what Pillow's readers say of it where they speak to people."""
    return f"{fault}: {error}" if type(error) is OSError and error.errno is None and error.args else fault


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any image → RGB, upright; the image itself if it is that already: small images feel a copy.

    OSError for an opened file whose pixels are damaged.
    """
    image.load()
    try:
        if _is_turned(image):
            image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block is ignored, as browsers do
        pass
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if (key := image.info.get("transparency")) is not None:
            wide = np.where(wide == key, 65535, wide)
        return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says so. Pillow also asks XMP, which browsers do not, and they do not turn a WebP."""
    if image.format == "WEBP":
        return False
    exif = image.getexif()
    if not XMP.isdisjoint(image.info):
        bare = Image.new("1", (1, 1))
        bare.info = {name: value for name, value in image.info.items() if name not in XMP}
        exif = bare.getexif()
    turned: bool = exif.get(ExifTags.Base.Orientation, 1) != 1
    return turned


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent pixels blended with white.

    Of a large picture strip by strip: Pillow holds the interpreter while it blends.
    """
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    flat = Image.new("RGB", image.size, None)
    for top in range(0, height, rows):
        flat.paste(_on_white(image.crop((0, top, width, min(height, top + rows)))), (0, top))
    return flat


def load_image(data: bytes, target: Target, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An encoded image → uint8 pixels of the target's shape; raises what `decode` raises."""
    views = views_of(target)
    plain = plain_image(data, views.plain, max_pixels=max_pixels) if views.plain else None
    return views.pixels(plain or decode(data, max_pixels=max_pixels, near=views.near))
