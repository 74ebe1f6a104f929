"""What a caller passes: images, and options by their names over HTTP."""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = NDArray[np.uint8]
Source: TypeAlias = bytes | Pixels
"""An encoded image, or the pixels [H, W, 3] of one."""
ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Pixels | Image"
"""A path, an encoded image, pixels uint8 [H, W, 3], a Pillow image."""
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"
"""One or several; an array [n, H, W, 3] is several."""

_ONE = (str, os.PathLike, bytes, bytearray, memoryview)


def read_images(images: Images) -> list[Source]:
    """Read what is a path and convert what is a Pillow image.

    Raises:
        OSError: a file that cannot be read.
        TypeError, ValueError: the wrong type or shape.
    """
    if isinstance(images, _ONE) or _is_pillow(images) or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [_read(images, "the image")]
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
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"{name} is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3] or [n, H, W, 3]")
        return image
    if _is_pillow(image):
        from msmlp.model.preprocess import upright_rgb

        return np.asarray(upright_rgb(image))
    raise TypeError(f"{name} is a {type(image).__name__}; expected path, bytes, Pillow image or uint8 array [H, W, 3]")


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
