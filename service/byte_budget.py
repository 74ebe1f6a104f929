"""A limit on what all bodies together hold in memory, HTTP's and gRPC's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msmlp.service.errors import OverloadedError


class Memory:
    """Counts bytes; `shed` is told of every request that would pass the limit."""

    def __init__(self, limit: int, shed: Callable[[], None]) -> None:
        self.limit, self._shed = limit, shed
        self._held = 0

    def take(self, size: int) -> None:
        """Count `size` bytes, which `give_back` gives back; OverloadedError when there is no room for them."""
        if self._held + size > self.limit:
            self._shed()
            raise OverloadedError(f"the bodies of all requests hold {self._held} of {self.limit} bytes")
        self._held += size

    def give_back(self, size: int) -> None:
        """They are gone."""
        self._held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """`size` bytes are held inside."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)
