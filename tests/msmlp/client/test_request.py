"""The options of the Python clients are those of the service."""

import io
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from msmlp.client.request import Options, read_images
from msmlp.service.options import schemas

KINDS = {"array": str, "string": str, "number": float, "integer": int, "boolean": bool}


def test_a_client_takes_every_option_but_stream_which_is_a_method() -> None:
    hints = get_type_hints(Options)
    described = {name: KINDS[schema["type"]] for name, schema in schemas().items() if name != "stream"}
    assert set(hints) == set(described)
    for name, kind in described.items():
        assert {kind, type(None)} <= set(hints[name].__args__), name


def test_a_damaged_pillow_image_is_an_error_and_not_a_black_one() -> None:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(stream, "PNG")
    with Image.open(io.BytesIO(stream.getvalue()[:-2000])) as image, pytest.raises(OSError, match="truncated"):
        read_images(image)


def test_files_and_arrays_of_all_kinds_are_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    assert read_images(file) == [file.getvalue()]
    file.seek(0)
    assert read_images([file, file.getvalue()]) == [file.getvalue()] * 2
    grey = pixels[..., 0]
    for made in (grey, grey[..., None]):
        (read,) = read_images(made)
        assert np.array_equal(read, np.repeat(grey[..., None], 3, axis=2))
    clear = np.zeros((8, 6, 4), dtype=np.uint8)
    assert np.array_equal(read_images([clear])[0], np.full((8, 6, 3), 255))
    assert len(read_images(np.stack([pixels, pixels]))) == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((8, 6, 3)), r"float64 \[8, 6, 3\]; expected uint8 \[H, W, 3\].*\(255 \* array\)"),
        (np.zeros((3, 8, 6), np.uint8), r"uint8 \[3, 8, 6\]; expected .*transpose\(1, 2, 0\)"),
        (np.zeros((0, 6, 3), np.uint8), r"uint8 \[0, 6, 3\]; expected uint8"),
        (np.zeros(6, np.uint8), r"uint8 \[6\]; expected uint8"),
        (torch.zeros(3, 8, 6), r"is a tensor, float32 \[3, 8, 6\]; expected a uint8 array"),
        ([torch.zeros(8, 6, 3, dtype=torch.uint8)], r"images\[0\] is a tensor, uint8"),
        (io.StringIO("x"), "reads str; open it with 'rb'"),
        ([None], r"images\[0\] is a NoneType; expected path, bytes, open file"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(given: Any, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told) as refused:
        read_images(given)
    assert "\n" not in str(refused.value)
