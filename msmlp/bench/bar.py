"""A progress bar on stderr; plain lines where tqdm (of the `train` extra) is not installed."""

import sys
from types import TracebackType

from msmlp.bench.runs import Progress

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None  # type: ignore[assignment, misc]


class Bar(Progress):
    """Shows the runs of a benchmark."""

    def __init__(self) -> None:
        self._bar = None if tqdm is None else tqdm(total=0, unit="run", leave=False)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        sys.stderr.write(f"msmlp bench: {line}\n")

    def step(self, what: str, number: int, steps: int) -> None:
        """The bar's next position."""
        if self._bar is None:
            self.say(f"{number}/{steps} {what}")
            return
        self._bar.total, self._bar.n = steps, number - 1
        self._bar.set_description(what)
