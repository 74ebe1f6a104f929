"""The options of the Python clients are those of the service."""

import io
from typing import get_type_hints

import pytest
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
