"""When requests come: at random, in daily waves, in bursts, or as a log has them."""

import json
from collections.abc import Callable, Iterator, Sequence
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
SHAPES = ("poisson", "daily", "bursts")
EXPECTED = ", ".join(SHAPES) + ", or the path of an access log"


def rate_of(shape: str, peak: float, seconds: float) -> Rate:
    """Requests per second over a run of `seconds`; `peak` is the most that a steady or daily traffic has.

    daily: one day in a run, from night to night. bursts: three times `peak` for 3 of every 30 seconds.
    """
    if shape == "poisson":
        return lambda _: peak
    if shape == "daily":
        return lambda now: peak * (DAY_LOW + (1 - DAY_LOW) * float(np.sin(np.pi * now / seconds)) ** 2)
    if shape == "bursts":
        return lambda now: peak * (BURST_FACTOR if now % BURST_EVERY >= BURST_EVERY - BURST_SECONDS else 1)
    raise OptionError("--traffic", f"{shape!r} is not a file; expected one of {EXPECTED}")


def arrivals(rate: Rate, most: float, seconds: float, rng: np.random.Generator, images: int = 1) -> Iterator[Request]:
    """A Poisson process whose rate changes: candidates come at the rate `most`, and a share of them is dropped."""
    now = 0.0
    while (now := now + float(rng.exponential(1 / most))) < seconds:
        if rng.random() * most < rate(now):
            yield Request(now, images)


def peak_of(rate: Rate, seconds: float) -> float:
    """The highest rate, looked up a thousand times."""
    return max(rate(float(now)) for now in np.linspace(0, seconds, 1000))


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
        return Request(ended - float(entry["duration_ms"]) / 1e3, int(entry["images"]))
    except (ValueError, KeyError, TypeError):
        return None


def traffic_of(
    shape: str, rate: float | None, seconds: float, images: int
) -> tuple[Callable[[float, np.random.Generator], Sequence[Request]], float]:
    """Traffic whose rate can be multiplied, and how long it lasts; `shape` is one of SHAPES or a log file.

    Raises:
        OptionError: another shape, or no rate where one is needed.
        DataError: the log cannot be read, or has no requests.
    """
    if shape not in SHAPES:
        path = Path(shape)
        if not path.is_file():
            raise OptionError("--traffic", f"{shape!r} is not a file; expected one of {EXPECTED}")
        if rate is not None:
            raise OptionError("--rate", "cannot be combined with an access log, which sets the rate")
        logged = from_log(path)
        lasts = max(1.0, logged[-1].sent)
        return lambda factor, rng: thinned(logged, factor, lasts, rng), lasts
    if rate is None:
        raise OptionError("--rate", f"missing; --traffic {shape} needs a rate in requests per second")
    of = rate_of(shape, rate, seconds)

    def drawn(factor: float, rng: np.random.Generator) -> Sequence[Request]:
        most = factor * peak_of(of, seconds)
        return list(arrivals(lambda now: factor * of(now), most, seconds, rng, images))

    return drawn, seconds


def thinned(requests: Sequence[Request], factor: float, seconds: float, rng: np.random.Generator) -> list[Request]:
    """`factor` times as many requests: each is kept with that chance, or repeated up to a second later."""
    found = []
    whole, part = divmod(factor, 1)
    for request in requests:
        for copy in range(int(whole) + int(rng.random() < part)):
            sent = request.sent + (float(rng.random()) if copy else 0.0)
            found.append(Request(min(sent, seconds), request.images))
    return sorted(found)
