"""JSON bodies that are far larger than what they ask for; tests/service/http/test_body.py has the honest ones."""

import base64
import json
import tracemalloc

import pytest

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.errors import MalformedBodyError, TooManyImagesError
from msmlp.service.http.json_body import read_json
from msmlp.service.options import parse_options

BOMBS = ["[]", "{}", "0", '"a"', "[[]]", '{"a":0}', "null", '"YQ=="']
LENGTH = 10**6


def many(item: str) -> str:
    return ",".join([item] * (LENGTH // len(item)))


@pytest.mark.parametrize("item", BOMBS)
@pytest.mark.parametrize(
    "body",
    [
        '{"images":[],"x":[%s]}',
        '{"images":[%s]}',
        '{"thresholds":[%s]}',
        '{"top_k":[%s]}',
        "[%s]",
        '{"images":{"a":[%s]}}',
    ],
)
def test_nothing_is_built_of_what_is_not_asked_for(body: str, item: str) -> None:
    text = body.replace("%s", many(item)).encode()
    tracemalloc.start()
    try:
        with pytest.raises(MsmlpError):
            read_json(text, 4)
        assert tracemalloc.get_traced_memory()[1] < len(text) + 20_000  # one copy of the images' text
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{" + many('"x":0') + "}", OptionError),
        ("{" + many('"top_k":1') + "}", OptionError),
        ("{" + many('"images":[]') + "}", OptionError),
        ('{"' + "x" * LENGTH + '":0}', OptionError),
        ('{"top_k":' + "1" * LENGTH + "}", OptionError),
        ('{"top_k":' + "1" * 900 + "}", OptionError),
        ('{"top_k":1e' + "9" * 900 + "}", OptionError),
        ('{"policy":"' + "x" * LENGTH + '"}', OptionError),
        ('{"thresholds":' + "[" * 400 + "]" * 400 + "}", OptionError),
        ('{"thresholds":' + "[" * LENGTH, MalformedBodyError),
        ('{"images":["' + "?" * LENGTH + '"]}', MalformedBodyError),
        ('{"images":["' + "," * LENGTH + '"]}', TooManyImagesError),
    ],
)
def test_numbers_names_and_depth_have_an_end(text: str, error: type[MsmlpError]) -> None:
    with pytest.raises(error) as caught:
        parse_options(read_json(text.encode(), 4)[1])
    assert len(str(caught.value)) < 400


def test_images_are_counted_before_they_are_decoded() -> None:
    with pytest.raises(TooManyImagesError, match="more than 4 images in one request"):
        read_json(b'{"images":["?' + b'","?' * 10_000 + b'"]}', 4)
    with pytest.raises(TooManyImagesError, match="5 images in one request; at most 4 are allowed"):
        read_json(json.dumps({"images": ["?"] * 5}).encode(), 4)


def test_the_most_images_as_data_urls() -> None:
    """Each has a comma of its own."""
    files = [bytes([number]) * 9 for number in range(4)]
    texts = ["data:image/png;base64," + base64.b64encode(file).decode() for file in files]
    assert read_json(json.dumps({"images": texts}).encode(), 4) == (files, {})


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert read_json(b"\xef\xbb\xbf" + b'{"images": ["YQ=="], "top_k": 2}', 1) == ([b"a"], {"top_k": 2})


def test_the_unknown_option_is_named() -> None:
    with pytest.raises(OptionError, match="'topk': no such option; expected one of images, thresholds, policy"):
        read_json(b'{"images": ["YQ=="], "topk": 2}', 1)
