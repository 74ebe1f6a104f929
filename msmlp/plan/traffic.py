"""When requests come: at random, in daily waves, in bursts, or as a log has them."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from msmlp.model.errors import DataError, OptionError
from msmlp.plan.replica import Request

Rate = Callable[[float], float]
"""From seconds to requests per second."""

DAY_LOW = 0.25
"""The night's share of the peak."""
BURST_EVERY, BURST_SECONDS, BURST_FACTOR = 30.0, 3.0, 3.0
LEAD = 0.25
"""The share of a steady run at its start that is not counted: queues fill, and brown-out finds its level."""
SECONDS = 60.0
FEWEST, MOST = 100, 5_000_000
"""Requests of a run: a 99th percentile of fewer means nothing, and more do not fit into memory."""
SHAPES = ("poisson", "daily", "bursts")
EXPECTED = ", ".join(SHAPES) + ", or the path of an access log"


def rate_of(shape: str, rate: float, seconds: float) -> tuple[Rate, float]:
    """Requests per second over a run of `seconds`, and the most of them.

    daily: one day in a run, from night to night, with `rate` at noon. bursts: three times `rate` for 3 of every 30 s.
    """
    if shape == "daily":
        return lambda now: rate * (DAY_LOW + (1 - DAY_LOW) * math.sin(math.pi * now / seconds) ** 2), rate
    if shape == "bursts":
        quiet = BURST_EVERY - BURST_SECONDS
        return lambda now: rate * (BURST_FACTOR if now % BURST_EVERY >= quiet else 1), BURST_FACTOR * rate
    return lambda _: rate, rate


def arrivals(rate: Rate, most: float, seconds: float, rng: np.random.Generator, images: int = 1) -> Iterator[Request]:
    """A Poisson process whose rate changes: candidates come at the rate `most`, and a share of them is dropped."""
    now = 0.0
    while (now := now + float(rng.exponential(1 / most))) < seconds:
        if rng.random() * most < rate(now):
            yield Request(now, images)


def from_log(path: Path) -> list[Request]:
    """The requests of an access log of `msmlp serve` in JSON lines, from its first one on.

    Raises:
        DataError: it cannot be read, or no line of it is a request.
    """
    found = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if (request := _logged(line)) is not None:
                    found.append(request)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} cannot be read: it is not text in UTF-8") from None
    if not found:
        raise DataError(f"{path} has no requests; expected what msmlp serve --log-format json --access-log writes")
    found.sort()
    first = found[0].sent
    return [Request(sent - first, images) for sent, images in found]


def _logged(line: str) -> Request | None:
    """Parse one line. The send time is the timestamp minus the duration; None for probes and other lines."""
    try:
        entry = json.loads(line)
        if entry["logger"] != "msmlp.access" or int(entry["images"]) < 1:
            return None
        ended = datetime.fromisoformat(entry["timestamp"]).timestamp()
        sent = ended - float(entry["duration_ms"]) / 1e3
        return Request(sent, int(entry["images"])) if math.isfinite(sent) else None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


@dataclass(frozen=True)
class Traffic:
    """`make` gives the requests of a run, a factor times as dense; it lasts `seconds`, of which the first `lead` only
    fill the queues."""

    make: Callable[[float, np.random.Generator], Sequence[Request]]
    seconds: float
    lead: float = 0.0


def traffic_of(shape: str, rate: float | None, seconds: float | None = None, images: int | None = None) -> Traffic:
    """`shape` is one of SHAPES or a log file, which has its own rate, length and images.

    Raises:
        OptionError: another shape, a rate that is missing or too many, or options that a log does not take.
        DataError: the log cannot be read, or has no requests.
    """
    if shape not in SHAPES:
        path = Path(shape)
        if not path.is_file():
            raise OptionError("--traffic", f"{shape!r} is not a file; expected one of {EXPECTED}")
        for name, value in (("--rate", rate), ("--seconds", seconds), ("--images", images)):
            if value is not None:
                raise OptionError(name, "cannot be combined with an access log, which sets it")
        logged = from_log(path)
        # As long after the last request as between two of them, or it would not count.
        lasts = max(1.0, logged[-1].sent * (1 + 1 / len(logged)) + 1e-3)
        return Traffic(lambda factor, rng: thinned(logged, factor, lasts, rng), lasts)
    lasts, several = seconds or SECONDS, images or 1
    if rate is None:
        raise OptionError("--rate", f"missing; --traffic {shape} needs a rate in requests per second")
    if not FEWEST <= rate * lasts <= MOST:
        raise OptionError("--rate", f"{rate:g} for {lasts:g} s; expected {FEWEST:,} to {MOST:,} requests in a run")
    if shape == "bursts" and lasts < BURST_EVERY:
        raise OptionError("--seconds", f"{lasts:g}; expected at least {BURST_EVERY:g}, as bursts come that often")
    of, most = rate_of(shape, rate, lasts)

    def drawn(factor: float, rng: np.random.Generator) -> Sequence[Request]:
        return list(arrivals(lambda now: factor * of(now), factor * most, lasts, rng, several))

    return Traffic(drawn, lasts, LEAD * lasts if shape == "poisson" else 0.0)


def thinned(requests: Sequence[Request], factor: float, seconds: float, rng: np.random.Generator) -> list[Request]:
    """`factor` times as many requests: each is kept with that chance, or repeated up to a second later."""
    found = []
    whole, part = divmod(factor, 1)
    for request in requests:
        for copy in range(int(whole) + int(rng.random() < part)):
            later = request.sent + (float(rng.random()) if copy else 0.0)
            found.append(Request(later if later < seconds else request.sent, request.images))
    return sorted(found)
