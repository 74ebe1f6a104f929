"""Any number of files, in as many requests as they need."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from msmlp.errors import ServiceError
from msmlp.model.errors import CallerError, MsmlpError, OptionError

T = TypeVar("T")

AT_ONCE = 128
"""Files of one request, at most; half as many, and half of that, where a service takes fewer."""


@dataclass(frozen=True)
class File:
    """A name to show, and where its bytes are, or the bytes."""

    name: str
    source: Path | bytes

    def read(self) -> bytes:
        """The bytes; OptionError when they cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise OptionError(self.name, error.strerror or "cannot be read") from None


def in_requests(ask: Callable[[list[bytes]], Iterable[T]], files: Sequence[File]) -> Iterator[tuple[int, T]]:
    """What `ask` gives for all files, each with the number of the file that was its request's first.

    Raises:
        CallerError, MsmlpError: with the name of the file at fault.
    """
    for start in range(0, len(files), AT_ONCE):
        yield from _ask(ask, files, start, min(start + AT_ONCE, len(files)))


def _ask(
    ask: Callable[[list[bytes]], Iterable[T]], files: Sequence[File], start: int, end: int
) -> Iterator[tuple[int, T]]:
    part = files[start:end]
    try:
        for answer in ask([file.read() for file in part]):
            yield start, answer
    except ServiceError as error:
        if error.code not in ("too_many_images", "body_too_large") or len(part) == 1:
            raise _told(error, part) from error
        middle = (start + end) // 2
        yield from _ask(ask, files, start, middle)
        yield from _ask(ask, files, middle, end)


def _told(error: ServiceError, files: Sequence[File]) -> MsmlpError:
    """The error as a person at a terminal needs it."""
    if error.code == "unreachable":
        return MsmlpError(f"{error.detail}; is the address right? msmlp serve starts a service")
    text = error.detail
    if error.errors:
        text = "; ".join(f"{files[each['index']].name}: {each['detail']}" for each in error.errors[:3])
        text += f"; and {len(error.errors) - 3} more" if len(error.errors) > 3 else ""
    mistake = error.status is not None and 400 <= error.status < 500 and error.status != 429
    return CallerError(text) if mistake else MsmlpError(text)
