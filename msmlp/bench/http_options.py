"""What the command line of `msmlp bench http` says, read and checked."""

from pathlib import Path

from msmlp.bench.bodies import BODIES
from msmlp.bench.runs import HttpOptions
from msmlp.client.transport import checked_url
from msmlp.model.errors import DataError, OptionError

MOST = 1024
"""Connections."""


def read_options(
    files: list[Path],
    *,
    url: str | None,
    weights: Path | None,
    connections: str,
    rates: str,
    bodies: str,
    seconds: float,
    rounds: int,
) -> HttpOptions:
    """Options as they were written.

    Raises:
        OptionError: lists that are none, and an address that is none.
        DataError: a file that cannot be read.
    """
    counts, shares, kinds = _items(connections), _items(rates), _items(bodies)
    if not counts or not all(text.isascii() and text.isdigit() and 0 < int(text) <= MOST for text in counts):
        raise OptionError("--connections", f"{connections!r} is no list of numbers 1 to {MOST}, as in 1,8,32")
    if not all(_is_rate(text) for text in shares):
        raise OptionError("--rates", f"{rates!r} is no list of requests a second or shares, as in 200 or 50%,80%")
    if not kinds or not set(kinds) <= set(BODIES):
        raise OptionError("--bodies", f"{bodies!r} is no list of {', '.join(BODIES)}")
    if url is not None and weights is not None:
        raise OptionError("--weights", "a running service has its own; give --url or --weights, not both")
    try:
        images = tuple(path.read_bytes() for path in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    return HttpOptions(
        None if url is None else checked_url(url),
        weights,
        images,
        tuple(int(text) for text in counts),
        shares,
        kinds,
        seconds,
        rounds,
    )


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",")) if text.strip() else ()


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text.removesuffix("%")) <= 1e6
    except ValueError:
        return False
