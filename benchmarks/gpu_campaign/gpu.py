"""What nvidia-smi says: the device's name, and how busy it is while something runs."""

import os
import platform
import subprocess
import time
from contextlib import suppress

QUERY_NAME = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
QUERY_BUSY = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
EVERY_SECONDS = 1.0


def device_name(device: str) -> str:
    """The GPU's own name, or the CPU with the number of its cores."""
    if device == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(QUERY_NAME, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0]
    return device


class Busy:
    """The share of time in which the GPU ran a kernel, as nvidia-smi samples it; None where nobody can say.

    Call `look` often: it asks in the background, once a second. What is seen before `settled` does not count: reading
    the data and compiling say nothing of training.
    """

    def __init__(self, device: str) -> None:
        self._asks = device != "cpu"
        self._query: subprocess.Popen[str] | None = None
        self._next = 0.0
        self._settled = False
        self._samples: list[float] = []

    def look(self) -> None:
        """Take in an answer, ask anew."""
        if self._query is not None and self._query.poll() is not None:
            answer = self._query.communicate()[0].split("\n")[0].strip()
            self._query = None
            if answer.isdigit():  # "[N/A]" where the driver does not tell
                self._samples.append(int(answer) / 100)
        if self._asks and self._query is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_SECONDS
            try:
                self._query = subprocess.Popen(QUERY_BUSY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            except OSError:
                self._asks = False

    def settled(self) -> None:
        """What counts begins here."""
        if not self._settled:
            self._settled = True
            self._samples.clear()

    def share(self) -> float | None:
        """The mean of the samples that count, in [0, 1]."""
        counted = self._samples if self._settled else []
        return round(sum(counted) / len(counted), 3) if counted else None

    def close(self) -> None:
        """Let go of a question that is still open."""
        if self._query is not None:
            self._query.kill()
            self._query.communicate()
