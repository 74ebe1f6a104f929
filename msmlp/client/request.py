"""What a caller passes: images, and options by their names over HTTP."""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = NDArray[np.uint8]
Source: TypeAlias = bytes | Pixels
"""An encoded image, or the pixels [H, W, 3] of one."""
ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Pixels | Image"
"""A path, an encoded image, an open file, a Pillow image, or pixels uint8 [H, W, 3] (or grey [H, W], or with alpha
[H, W, 4])."""
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"
"""One or several; an array [n, H, W, 3] is several."""

_ONE = (str, os.PathLike, bytes, bytearray, memoryview)


def read_images(images: Images) -> list[Source]:
    """Read what is a path and convert what is a Pillow image.

    Raises:
        OSError: a file that cannot be read.
        TypeError, ValueError: the wrong type or shape.
    """
    one = isinstance(images, _ONE) or _is_pillow(images) or hasattr(images, "read")
    if one or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [_read(images, "the image")]
    _refuse_tensors(images, "images")
    if not isinstance(images, Iterable):
        raise TypeError(f"images: expected one image or a sequence of them, got {type(images).__name__}")
    sources = [_read(image, f"images[{index}]") for index, image in enumerate(images)]
    if not sources:
        raise ValueError("images: expected at least one")
    return sources


def encoded(source: Source) -> bytes:
    """An image as a file; pixels become a PNG, which keeps them."""
    if isinstance(source, bytes):
        return source
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(source).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _read(image: Any, name: str) -> Source:
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "read"):
        content = image.read()
        if not isinstance(content, bytes):
            raise TypeError(f"{name} is a file that reads {type(content).__name__}; open it with 'rb'")
        return content
    if isinstance(image, np.ndarray):
        return _pixels(image, name)
    if _is_pillow(image):
        from msmlp.model.preprocess import upright_rgb
        from msmlp.model.profiles import to_srgb, usable

        rgb, profile = upright_rgb(image), image.info.get("icc_profile") or b""
        return np.asarray(to_srgb(rgb, profile) if usable(profile, image.mode) else rgb)
    _refuse_tensors(image, name)
    raise TypeError(
        f"{name} is a {type(image).__name__}; expected path, bytes, open file, Pillow image or uint8 array [H, W, 3]"
    )


def _pixels(image: NDArray[Any], name: str) -> Pixels:
    """RGB of an array: grey becomes colour, and what is transparent white."""
    shape, expected = list(image.shape), "expected uint8 [H, W, 3] or [n, H, W, 3]"
    if not image.size or (image.ndim, *shape[2:]) not in ((2,), (3, 1), (3, 3), (3, 4)):
        channels_first = image.ndim == 3 and shape[0] in (1, 3, 4)
        hint = ", with the channels last, as array.transpose(1, 2, 0) has them" if channels_first else ""
        raise ValueError(f"{name} is {image.dtype} {shape}; {expected}{hint}")
    if image.dtype != np.uint8:
        hint = "; of floats from 0 to 1, (255 * array).round().astype('uint8')" if image.dtype.kind == "f" else ""
        raise ValueError(f"{name} is {image.dtype} {shape}; {expected}{hint}")
    if shape[2:] == [3]:
        return image
    from PIL import Image

    from msmlp.model.preprocess import upright_rgb

    return np.asarray(upright_rgb(Image.fromarray(image.squeeze(2) if shape[2:] == [1] else image)))


def _refuse_tensors(image: Any, name: str) -> None:
    # They would be read row by row. What their channels, range and device are, only the caller knows.
    if hasattr(image, "detach"):
        shape = f"{image.dtype} {list(image.shape)}".removeprefix("torch.")
        raise TypeError(f"{name} is a tensor, {shape}; expected a uint8 array [H, W, 3], as .permute(1, 2, 0).numpy()")


def _is_pillow(image: Any) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image)


class Options(TypedDict, total=False):
    """The options of a request, explained in docs/http.md; None means not given."""

    thresholds: Sequence[float] | str | None
    policy: str | None
    budget_gflops: float | None
    min_accuracy: float | None
    accuracy_floor: float | None
    max_gflops: float | None
    deadline_ms: float | None
    min_exit: int | None
    max_exit: int | None
    top_k: int | None
    degrade: bool | None


def as_text(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as form fields: what a service reads, and a model in-process too, so that both say the same of them."""
    if "stream" in options:
        raise TypeError("stream is not an option here; call .stream(images, ...)")
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=_plain)
        for name, value in options.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an option cannot be a {type(value).__name__}")
