"""Whose picture is decoded next. Pure: no clock, no threads."""

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

SMALL_SECONDS = 0.005
"""A picture predicted to take no longer goes before the large ones."""
LARGE_SHARE = 0.25
"""What the large ones still get for each second that small ones take before them."""

Request = TypeVar("Request")


class Next(NamedTuple, Generic[Request]):
    """The picture `number` of a request, and the seconds predicted for it."""

    request: Request
    number: int
    seconds: float


class _Lane(Generic[Request]):
    """Requests that take turns, a picture each."""

    def __init__(self) -> None:
        self.waiting: dict[Request, deque[tuple[int, float]]] = {}

    def add(self, request: Request, pictures: Sequence[tuple[int, float]]) -> None:
        if pictures:
            self.waiting.setdefault(request, deque()).extend(pictures)

    @property
    def next_seconds(self) -> float:
        return next(iter(self.waiting.values()))[0][1]

    def take(self) -> Next[Request]:
        request = next(iter(self.waiting))
        pictures = self.waiting.pop(request)
        taken = Next(request, *pictures.popleft())
        if pictures:
            self.waiting[request] = pictures  # at the end
        return taken


class DecodeQueue(Generic[Request]):
    """Small pictures before large ones; in each of the two lanes requests take turns, one picture at a time.

    No picture starves: while small ones go before them, large ones save up time, at LARGE_SHARE, and then have a turn.
    `seconds` is what all pictures in the queue are predicted to take.
    """

    def __init__(self) -> None:
        self._small, self._large = _Lane[Request](), _Lane[Request]()
        self._saved = 0.0
        self._seconds: dict[Request, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())

    def ahead(self, seconds: float) -> float:
        """What is decoded before a new request that takes `seconds` ends: by turns, no other gets more than that."""
        return sum(min(seconds, each) for each in self._seconds.values())

    def add(self, request: Request, seconds: Sequence[float]) -> None:
        """Pictures of a request, predicted to take `seconds`; they are numbered from 0."""
        pictures = list(enumerate(seconds))
        self._seconds[request] = self._seconds.get(request, 0.0) + sum(seconds)
        self._small.add(request, [each for each in pictures if each[1] <= SMALL_SECONDS])
        self._large.add(request, [each for each in pictures if each[1] > SMALL_SECONDS])

    def take(self) -> Next[Request] | None:
        """The next picture; None if there is none."""
        small, large = self._small.waiting, self._large.waiting
        if large and (not small or self._saved >= self._large.next_seconds):
            taken = self._large.take()
            self._saved = max(0.0, self._saved - taken.seconds)
        elif small:
            taken = self._small.take()
            if large:
                self._saved += LARGE_SHARE * taken.seconds
        else:
            self._saved = 0.0
            return None
        if taken.request in small or taken.request in large:
            self._seconds[taken.request] -= taken.seconds
        else:
            del self._seconds[taken.request]
        return taken

    def remove(self, request: Request) -> None:
        """Forget what is left of a request."""
        self._small.waiting.pop(request, None)
        self._large.waiting.pop(request, None)
        self._seconds.pop(request, None)
