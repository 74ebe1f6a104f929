"""Safe reading and writing of the files in a weights folder."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from msmlp.model.errors import WeightsError, one_line

M = TypeVar("M", bound=BaseModel)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` in one step, so that no reader sees half a file; an OSError names it, and leaves it as it was."""
    write_together({path: content})


def write_together(contents: dict[Path, bytes]) -> None:
    """The same for files that belong together: where there is no room for one of them, all stay as they were."""
    partials = {path: path.with_name(path.name + ".partial") for path in contents}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            partials[path].write_bytes(content)
        for path, partial in partials.items():
            partial.replace(path)
    except OSError as error:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_file(path: Path) -> bytes | None:
    """The bytes of `path`, None if there is nothing; WeightsError if it cannot be read or is not a file."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            raise WeightsError(f"{path} is not a file")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from None


def read_json(path: Path) -> tuple[bytes, Any] | None:
    """The bytes of a JSON file and its document, None without a file; WeightsError if it is not JSON."""
    blob = read_file(path)
    if blob is None:
        return None
    try:
        return blob, json.loads(blob)
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise WeightsError(f"{path} is not JSON") from None


def validated(kind: type[M], document: Any, path: Path) -> M:
    """The document of `path` as a `kind`; WeightsError with the first mistake in it."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise WeightsError(one_line(error, str(path))) from None


def read_checked(path: Path, expected: str | None) -> bytes:
    """The bytes of `path`; WeightsError unless their sha256 is `expected`."""
    blob = read_file(path)
    if blob is None:
        raise WeightsError(f"{path} is missing")
    if expected is None:
        raise WeightsError(f"the file that describes {path} does not list it")
    found = hashlib.sha256(blob).hexdigest()
    if found != expected:
        raise WeightsError(f"{path} is damaged: sha256 {found[:12]}..., expected {expected[:12]}...")
    return blob
