"""Reading and writing the files of a weights folder safely."""

import hashlib
from pathlib import Path

from model.errors import WeightsError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` in one step, so that no reader sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def read_checked(path: Path, expected: str | None) -> bytes:
    """The bytes of `path`, whose sha256 must be `expected`; WeightsError when it is not."""
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    if expected is None:
        raise WeightsError(f"the file that describes {path} does not list it")
    found = hashlib.sha256(blob).hexdigest()
    if found != expected:
        raise WeightsError(f"{path} is damaged: sha256 {found[:12]}..., expected {expected[:12]}...")
    return blob
