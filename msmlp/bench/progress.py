"""How far a bench is, on stderr: one bar that is drawn over on a terminal, a line a step elsewhere."""

import sys
from types import TracebackType
from typing import TextIO

WIDTH = 24


class Bar:
    """A context; call it with what begins now, once a step. `steps` is how many there will be."""

    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self._steps, self._done = steps, 0
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()

    def __call__(self, text: str) -> None:
        """The step `text` begins, so those before it are done."""
        share = min(1.0, self._done / self._steps)
        self._done += 1
        if self._terminal:
            filled = round(WIDTH * share)
            self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (WIDTH - filled)}] {100 * share:3.0f} % {text}")
        else:
            self._stream.write(f"msmlp bench: {100 * share:3.0f} % {text}\n")
        self._stream.flush()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._terminal and self._done:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
