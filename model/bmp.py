"""BMPs that Pillow's reader does not know: colours and alpha behind bit masks of any kind, and 2 bits per pixel."""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImagePalette

STRIP_PIXELS = 2**16
HEADERS = (40, 52, 56, 108, 124)
_RAW, _MASKS, _ALPHA_MASKS = 0, 3, 6
_OF_PILLOW = {
    (16, (0xF800, 0x7E0, 0x1F, 0)),
    (16, (0x7C00, 0x3E0, 0x1F, 0)),
    (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    (32, (0, 0, 0, 0)),
}


class _Header:
    """What a BMP's header tells. struct.error for a file that is shorter."""

    def __init__(self, data: bytes) -> None:
        self.offset, self.length, self.width, height, self.bits, self.compression, _, _, _, self.colours = (
            struct.unpack_from("<10xIIii2xHIIiiI", data)
        )
        self.height, self.top_down = abs(height), height < 0
        self.stride = (self.width * self.bits + 31) // 32 * 4
        self.masks = (0, 0, 0, 0)
        if self.compression in (_MASKS, _ALPHA_MASKS):
            alpha = self.compression == _ALPHA_MASKS or self.length >= 56
            red, green, blue, *rest = struct.unpack_from("<4I" if alpha else "<3I", data, 54)
            self.masks = (red, green, blue, rest[0] if rest else 0)


class _MaskedBmp(ImageFile.ImageFile):
    """Opened as Pillow's readers do: the header now, the pixels when they are loaded."""

    format, format_description = "BMP", "Windows Bitmap"

    def _open(self) -> None:
        assert self.fp is not None
        self._data: bytes = self.fp.read()
        self._header = header = _Header(self._data)
        self._size, self._mode = (header.width, header.height), "RGBA" if header.masks[3] else "RGB"
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), header.offset, self.mode)]

    def load(self) -> Any:
        if self.tile:
            self.im = Image.fromarray(self._pixels()).im
            self.tile, self._data, self.fp = [], b"", None
        return super().load()

    def _pixels(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3 or 4]."""
        head, (width, height) = self._header, self.size
        kind = np.dtype("<u2" if head.bits == 16 else "<u4")
        if head.offset + head.stride * height > len(self._data):
            raise OSError("image file is truncated")
        rows = np.ndarray((height, head.stride // kind.itemsize), kind, self._data, head.offset)[:, :width]
        rows = rows if head.top_down else rows[::-1]
        pixels = np.empty((height, width, len(self.mode)), np.uint8)
        step = max(1, STRIP_PIXELS // width)
        for channel, mask in enumerate(head.masks[: len(self.mode)]):
            for top in range(0, height, step):
                pixels[top : top + step, :, channel] = _unmask(rows[top : top + step], mask)
        if self.mode == "RGBA" and not pixels[..., 3].any():  # its encoder left it out
            pixels[..., 3] = 255
        return pixels


class _FourColours(ImageFile.ImageFile):
    """A BMP of 2 bits per pixel."""

    format, format_description = "BMP", "Windows Bitmap"

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        header = _Header(data)
        start, self._size, self._mode = 14 + header.length, (header.width, header.height), "P"
        self.palette = ImagePalette.raw("BGRX", data[start : start + 4 * min(header.colours or 4, 4)])
        args = ("P;2", header.stride, 1 if header.top_down else -1)
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), header.offset, args)]


def open_odd_bmp(data: bytes) -> ImageFile.ImageFile | None:
    """The opened image; None for what Pillow's reader is to open. Raises what that raises."""
    if len(data) < 54 or (data[28] != 2 and data[30] not in (_MASKS, _ALPHA_MASKS)):  # bits, compression
        return None
    try:
        header = _Header(data)
    except struct.error:
        return None
    if header.length not in HEADERS:
        return None
    if header.bits == 2 and header.compression == _RAW:
        return _FourColours(io.BytesIO(data))
    masked = header.compression in (_MASKS, _ALPHA_MASKS) and header.bits in (16, 32)
    if masked and (header.compression == _ALPHA_MASKS or (header.bits, header.masks) not in _OF_PILLOW):
        return _MaskedBmp(io.BytesIO(data))
    return None


def without_surplus_colours(data: bytes) -> bytes:
    """The same BMP with no more colours than its pixels can name, as in browsers. Pillow would look at up to 65,536,
    in Python.
    """
    if len(data) < 54 or int.from_bytes(data[14:18], "little") < 40:
        return data
    bits, colours = struct.unpack_from("<28xH16xI", data)
    if bits > 8 or colours <= 1 << bits:
        return data
    return b"".join((data[:46], struct.pack("<I", 1 << bits), memoryview(data)[50:]))


def is_masked(image: Image.Image) -> bool:
    """Whether the pixels of an opened image are taken apart here, which takes longer than Pillow's own decoders."""
    return isinstance(image, _MaskedBmp)


def _unmask(values: NDArray[np.uint16] | NDArray[np.uint32], mask: int) -> NDArray[np.uint8]:
    """The bits behind a mask, scaled to 8; of more the high ones."""
    mask &= 2 ** (8 * values.itemsize) - 1
    if not mask:
        return np.zeros(values.shape, np.uint8)
    low = (mask & -mask).bit_length() - 1
    bits = (mask >> low).bit_length()
    if mask >> low != 2**bits - 1:
        raise OSError("the bits of a colour mask are not next to each other")
    if bits > 8:
        low, bits, mask = low + bits - 8, 8, 255 << low + bits - 8
    scaled = (np.arange(2**bits) * 510 + 2**bits - 1) // (2 * (2**bits - 1))
    found: NDArray[np.uint8] = scaled.astype(np.uint8)[(values & values.dtype.type(mask)) >> low]
    return found
