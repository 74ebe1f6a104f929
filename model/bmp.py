"""BMPs that Pillow's reader does not know, or shows otherwise than browsers: 2 and 16 bits per pixel, colours and alpha
behind bit masks of any kind, and runs with gaps.
"""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

STRIP_PIXELS = 2**16
MOST_RUNS = 500_000
"""They take a tenth of a second."""
HEADERS = (40, 52, 56, 108, 124)
_RAW, _RUNS_OF_8, _RUNS_OF_4, _MASKS, _ALPHA_MASKS = 0, 1, 2, 3, 6
_NO_MASKS, _FIVE_BITS, _EIGHT_BITS = (0, 0, 0, 0), (0x7C00, 0x3E0, 0x1F, 0), (0xFF0000, 0xFF00, 0xFF, 0)
_RUNS, _INDEXED = (_RUNS_OF_8, _RUNS_OF_4), {(2, _RAW), (8, _RUNS_OF_8), (4, _RUNS_OF_4)}
_PAIRS = [bytes((each >> 4, each & 15)) for each in range(256)]


class _Header:
    """What a BMP's header tells. struct.error for a file that is shorter."""

    def __init__(self, data: bytes) -> None:
        self.offset, self.length, self.width, height, self.bits, self.compression, _, _, _, self.colours = (
            struct.unpack_from("<10xIIii2xHIIiiI", data)
        )
        self.height, self.top_down = abs(height), height < 0
        self.stride = (self.width * self.bits + 31) // 32 * 4
        self.masks = self._masks(data)

    def _masks(self, data: bytes) -> tuple[int, ...]:
        alpha = struct.unpack_from("<I", data, 66) if self.length >= 56 or self.compression == _ALPHA_MASKS else (0,)
        if self.compression in (_MASKS, _ALPHA_MASKS):
            return struct.unpack_from("<3I", data, 54) + alpha
        if self.compression == _RAW and self.bits == 16:
            return _FIVE_BITS
        if self.compression == _RAW and self.bits == 32 and self.length >= 108 and alpha[0]:
            return _EIGHT_BITS[:3] + alpha
        return _NO_MASKS

    def is_odd(self) -> bool:
        if self.length not in HEADERS:
            return False
        if self.bits == 32:
            pillows = {_RAW: _NO_MASKS, _MASKS: _EIGHT_BITS}.get(self.compression, self.masks)
            return self.compression == _ALPHA_MASKS or self.masks != pillows
        masked = self.bits == 16 and self.compression in (_RAW, _MASKS, _ALPHA_MASKS)
        return masked or (self.bits, self.compression) in _INDEXED


class _OddBmp(ImageFile.ImageFile):
    """Opened as Pillow's readers do: the header now, the pixels when they are loaded."""

    format, format_description = "BMP", "Windows Bitmap"

    def _open(self) -> None:
        assert self.fp is not None
        self._data: bytes = self.fp.read()
        self._header = header = _Header(self._data)
        self._size, self._mode = (header.width, header.height), "RGBA" if header.masks[3] else "RGB"
        self.info["compression"] = header.compression
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), header.offset, self.mode)]

    def load(self) -> Any:
        if self.tile:
            self.im = Image.fromarray(self._pixels()).im
            self.tile, self._data, self.fp = [], b"", None
        return super().load()

    def _pixels(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3 or 4]."""
        head, (width, height) = self._header, self.size
        rows, told = _runs(self._data, head) if head.compression in _RUNS else _rows(self._data, head)
        rows, told = (rows, told) if head.top_down else (rows[::-1], told[::-1])
        pixels = np.empty((height, width, len(self.mode)), np.uint8)
        step, colours = max(1, STRIP_PIXELS // width), _palette(self._data, head)
        for top in range(0, height, step):
            strip = slice(top, top + step)
            if head.bits < 16:
                pixels[strip] = colours[rows[strip]] * told[strip, :, None]
                continue
            for channel, mask in enumerate(head.masks[: len(self.mode)]):
                pixels[strip, :, channel] = _unmask(rows[strip], mask)
        if self.mode == "RGBA" and not pixels[..., 3].any():  # its encoder left it out
            pixels[..., 3] = 255
        return pixels


def open_odd_bmp(data: bytes) -> ImageFile.ImageFile | None:
    """The opened image; None for what Pillow's reader is to open. Raises what that raises."""
    try:
        odd = _Header(data).is_odd()
    except struct.error:
        return None
    return _OddBmp(io.BytesIO(data)) if odd else None


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


def is_odd_bmp(image: Image.Image) -> bool:
    """Whether the pixels of an opened image are taken apart here, which takes longer than Pillow's own decoders."""
    return isinstance(image, _OddBmp)


def _palette(data: bytes, head: _Header) -> NDArray[np.uint8]:
    """RGB colours [256, 3]; black beyond those that there are."""
    start, count = 14 + head.length, min(head.colours or 256, 256)
    end = min(start + 4 * count, max(head.offset, start))
    colours = np.zeros((256, 3), np.uint8)
    told = np.frombuffer(data[start:end][: (end - start) // 4 * 4], np.uint8).reshape(-1, 4)
    colours[: len(told)] = told[:, 2::-1]
    return colours


def _rows(data: bytes, head: _Header) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The numbers that stand for pixels [height, width], as they are in the file, and 1 where it tells them."""
    if head.offset + head.stride * head.height > len(data):
        raise OSError("image file is truncated")
    kind = np.dtype({2: "u1", 16: "<u2", 32: "<u4"}[head.bits])
    rows = np.ndarray((head.height, head.stride // kind.itemsize), kind, data, head.offset)
    if head.bits == 2:
        rows = (rows[..., None] >> np.array([6, 4, 2, 0], np.uint8) & 3).reshape(head.height, -1)
    return rows[:, : head.width], np.broadcast_to(np.uint8(1), (head.height, head.width))


def _runs(data: bytes, head: _Header) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """As `_rows`, of a run-length-encoded picture, and 0 where it tells none."""
    width, four, at, end = head.width, head.compression == _RUNS_OF_4, head.offset, head.width
    shape = head.height, width
    numbers, told = bytearray(), np.ones(head.height * width, np.uint8)

    def leave_out(until: int) -> None:
        until = min(until, len(told))
        told[len(numbers) : until] = 0
        numbers.extend(bytes(until - len(numbers)))

    for _ in range(MOST_RUNS):
        if end > len(told):
            break
        if at + 2 > len(data):
            raise OSError("image file is truncated")
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            run = _PAIRS[value] * 128 if four else data[at - 1 : at] * count
            numbers += run[: min(count, end - len(numbers))]
        elif value == 0:  # the end of a line
            leave_out(end)
            end += width
        elif value == 1:  # of the picture
            break
        elif value == 2:  # a step
            right, up = data[at : at + 2].ljust(2, b"\0")
            leave_out(min(len(numbers) + right, end) + up * width)
            at, end = at + 2, end + up * width
        else:  # as many numbers
            size = (value + 1) // 2 if four else value
            run = b"".join(map(_PAIRS.__getitem__, data[at : at + size])) if four else data[at : at + size]
            numbers += run[: min(value, end - len(numbers))]
            at += size + size % 2
    else:
        raise OSError("the file has too many parts")
    leave_out(len(told))
    return np.frombuffer(numbers, np.uint8).reshape(shape), told.reshape(shape)


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
