"""The service's pace, for answers, metrics and Retry-After."""

from collections import deque


class Throughput:
    """Images answered a second, over the last `window` seconds."""

    def __init__(self, window: float = 10.0) -> None:
        self.window = window
        self._landed: deque[tuple[float, int]] = deque()
        self._sum = 0

    def count(self, images: int, now: float) -> None:
        """`images` were answered."""
        self._landed.append((now, images))
        self._sum += images
        self._forget(now)

    def per_second(self, now: float) -> float:
        """The rate; in the first seconds, over the time there was."""
        self._forget(now)
        if not self._landed:
            return 0.0
        return self._sum / min(self.window, max(1.0, now - self._landed[0][0]))

    def _forget(self, now: float) -> None:
        while self._landed and self._landed[0][0] < now - self.window:
            self._sum -= self._landed.popleft()[1]
