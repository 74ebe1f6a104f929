"""The first call that somebody makes, with the clients that people have: no header, a wrong one, PUT."""

import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

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
    "curl -T": curl("-T", "FILE"),
    "curl -F": curl("-F", "image=@FILE"),
    "curl with a type": curl("--data-binary", "@FILE", "-H", "Content-Type: image/jpeg"),
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


def test_a_score_that_was_told_is_a_threshold_that_it_reaches(client: httpx.Client, digit_files: list[bytes]) -> None:
    for picture in digit_files[:40]:
        told = client.post("/classify?thresholds=1,1", content=picture).json()["results"][0]["stages"][0]
        back = client.post(f"/classify?thresholds={told['score']!r},1", content=picture).json()["results"][0]
        assert (back["exit"], back["reason"]) == (1, "confident") or told["score"] == 1
