"""The first call that somebody makes, with the clients that people have: no header, a wrong one, PUT."""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

Call = Callable[[str, bytes, Path], dict[str, Any]]


def curl(*words: str) -> Call:
    """curl, with FILE for the picture's file."""

    def call(url: str, picture: bytes, file: Path) -> dict[str, Any]:
        file.write_bytes(picture)
        given = [word.replace("FILE", str(file)) for word in words]
        done = subprocess.run(["curl", "-s", *given, url], capture_output=True, timeout=100, check=True)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return call


def posted(**headers: str) -> Call:
    """httpx, which like requests and fetch declares nothing of bytes."""

    def call(url: str, picture: bytes, file: Path) -> dict[str, Any]:
        return httpx.post(url, content=picture, headers=headers, timeout=100).json()  # type: ignore[no-any-return]

    return call


def fetched(url: str, picture: bytes, file: Path) -> dict[str, Any]:
    """urllib, which declares of bytes what curl does."""
    with urllib.request.urlopen(url, picture, timeout=100) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


def in_json(prefix: str, **headers: str) -> Call:
    """Base64 in JSON."""

    def call(url: str, picture: bytes, file: Path) -> dict[str, Any]:
        content = json.dumps({"images": [prefix + base64.b64encode(picture).decode()]})
        return httpx.post(url, content=content, headers=headers, timeout=100).json()  # type: ignore[no-any-return]

    return call


def with_requests(url: str, picture: bytes, file: Path) -> dict[str, Any]:
    file.write_bytes(picture)
    with file.open("rb") as opened:
        return requests.post(url, data=opened, timeout=100).json()  # type: ignore[no-any-return]


def a_form(url: str, picture: bytes, file: Path) -> dict[str, Any]:
    return requests.post(url, files={"image": picture}, timeout=100).json()  # type: ignore[no-any-return]


def put(url: str, picture: bytes, file: Path) -> dict[str, Any]:
    request = urllib.request.Request(url, picture, {"Content-Type": "binary/octet-stream"}, method="PUT")
    with urllib.request.urlopen(request, timeout=100) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


CALLS: dict[str, Call] = {
    "nothing declared": posted(),
    "an empty type": posted(**{"Content-Type": ""}),
    "image/jpg": posted(**{"Content-Type": "image/jpg"}),
    "image/pjpeg": posted(**{"Content-Type": "image/pjpeg"}),
    "another image's type": posted(**{"Content-Type": "image/png"}),
    "S3": posted(**{"Content-Type": "binary/octet-stream"}),
    "PUT": put,
    "urllib": fetched,
    "requests, a file": with_requests,
    "requests, a form": a_form,
    "JSON": in_json("", **{"Content-Type": "application/json"}),
    "JSON undeclared": in_json(""),
    "JSON by fetch": in_json("", **{"Content-Type": "text/plain;charset=UTF-8"}),
    "JSON of a data: URL": in_json("data:image/jpeg;base64,", **{"Content-Type": "application/json"}),
    "curl -T": curl("-T", "FILE"),
    "curl -F": curl("-F", "image=@FILE"),
    "curl with a type": curl("--data-binary", "@FILE", "-H", "Content-Type: image/jpeg"),
    "curl alone": curl("--data-binary", "@FILE"),
    "curl of a pipe": curl("-T", "FILE", "-H", "Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("how", CALLS)
def test_the_first_call_is_answered(how: str, client: httpx.Client, cat_photo: bytes, tmp_path: Path) -> None:
    url = str(client.base_url.join("/classify"))
    expected = posted(**{"Content-Type": "image/jpeg"})(url, cat_photo, tmp_path)["results"][0]["label"]
    assert CALLS[how](url, cat_photo, tmp_path / "cat.jpg")["results"][0]["label"] == expected


def test_a_form_without_a_filename_says_what_is_missing(client: httpx.Client) -> None:
    answer = client.post("/classify", files={"images": (None, b"\xff\xd8")})
    assert answer.status_code == 400
    assert 'filename="cat.jpg"' in answer.json()["detail"]
    answer = client.post("/classify", files={"file": ("cat.jpg", b"\xff\xd8")})
    assert answer.json()["detail"] == "part 'file' is a file; image files go into parts named images"


CURL = {"Content-Type": "application/x-www-form-urlencoded"}
MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "nothing": ({"content": b""}, 422, "the request has no image; send an image as the body"),
    "curl -d @cat.jpg": ({"content": b"\xff\xd8\xff\xe0JFIF", "headers": CURL}, 415, "curl --data-binary @cat.jpg"),
    "curl -d URL": ({"content": b"https://a.org/cat.jpg", "headers": CURL}, 415, "curl --data-binary @cat.jpg"),
    "a URL": ({"content": b"https://a.org/cat.jpg"}, 422, "but an address; send the image itself"),
    "a URL in JSON": ({"json": {"images": ["https://a.org/cat.jpg"]}}, 400, "is an address; send the image itself"),
    "another name in JSON": ({"json": {"image": "aGVsbG8="}}, 422, "'image': no such option; expected one of images,"),
    "one string in JSON": ({"json": {"images": "aGVsbG8="}}, 400, 'expected {"images": ["<base64>", ...]'),
    "pixels in JSON": ({"json": {"images": [[[0, 0, 0]] * 999] * 9}}, 400, 'expected {"images": ["<base64>", ...]'),
    "a Buffer in JSON": ({"json": {"images": [{"data": [255] * 9999}]}}, 400, 'expected {"images": ["<base64>", ...]'),
    "a list as fields": (
        {"params": {"thresholds": [0.9, 0.8]}, "content": b"x"},
        422,
        "a list is one value, as 0.9,0.8",
    ),
    "base64 as the body": ({"content": b"/9j/4AAQSkZJRgABAQ=="}, 422, "but base64 text, which is read from JSON only"),
    "an empty file in a form": ({"files": {"images": ("cat.jpg", b"")}}, 422, "but an empty file"),
    "an empty form": (
        {"content": b"", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "Missing boundary in multipart. Let the",
    ),
    "another name in a form": ({"files": {"photo": ("a.jpg", b"x")}}, 400, "go into parts named images"),
    "no filename": ({"files": {"images": (None, b"x" * 9000)}}, 400, 'filename="cat.jpg"'),
    "HEIC": ({"content": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}, 422, "but HEIC; formats: PNG, JPEG"),
    "a web page": ({"content": b"<!doctype html><title>404</title>"}, 422, "but an HTML page"),
    "packed": (
        {"content": b"x", "headers": {"Content-Encoding": "gzip"}},
        415,
        "content encoding 'gzip' is not supported",
    ),
}


@pytest.mark.parametrize("how", MISTAKES)
def test_a_first_mistake_is_told_what_to_do(how: str, client: httpx.Client) -> None:
    request, status, says = MISTAKES[how]
    answer = client.post("/classify", **request)
    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/predict", "/classify/", "/v1/classify"])
def test_another_path_says_where_images_go(client: httpx.Client, path: str) -> None:
    assert "images go to POST /classify" in client.post(path, content=b"x").json()["detail"]


def test_a_score_that_was_told_is_a_threshold_that_it_reaches(client: httpx.Client, digit_files: list[bytes]) -> None:
    for picture in digit_files[:40]:
        told = client.post("/classify?thresholds=1,1", content=picture).json()["results"][0]["stages"][0]
        back = client.post(f"/classify?thresholds={told['score']!r},1", content=picture).json()["results"][0]
        assert (back["exit"], back["reason"]) == (1, "confident") or told["score"] == 1
