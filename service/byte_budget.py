"""A limit on the bytes that all request bodies hold together, over HTTP and gRPC."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msmlp.service.errors import OverloadedError


class ByteBudget:
    """Counts bytes; `shed` is called for every request that would exceed the limit."""

    def __init__(self, limit: int, shed: Callable[[], None]) -> None:
        self.limit, self._shed = limit, shed
        self._held = 0

    def take(self, size: int) -> None:
        """Count `size` bytes until they are given back; OverloadedError when there is no room for them."""
        if self._held + size > self.limit:
            self._shed()
            raise OverloadedError(f"the bodies of all requests hold {self._held} of {self.limit} bytes")
        self._held += size

    def give_back(self, size: int) -> None:
        self._held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)
