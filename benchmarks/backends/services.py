"""A service around each backend: how soon it is ready, and what memory it holds."""

import re
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from msmlp.bench.http import SERVE
from msmlp.bench.processes import family, server_process

ASKED = 50
"""Requests of LARGE images before memory is looked at."""
LARGE = 64


def started(weights: Path, choice: dict[str, str], picture: bytes, rounds: int) -> dict[str, Any]:
    """Median seconds from the start of the process to ready, and MiB that it and its children hold then and later.

    Args:
        weights: the weights folder.
        choice: options of `msmlp serve`.
        picture: an encoded image.
        rounds: how many starts.
    """
    options = [f"--{name}={value}" for name, value in {"weights": str(weights), "port": "0", **choice}.items()]
    seen = [_once(options, picture) for _ in range(rounds)]
    return {name: round(statistics.median(each[name] for each in seen), 2) for name in seen[0]}


def _once(options: list[str], picture: bytes) -> dict[str, float]:
    start = time.monotonic()
    with server_process("serve", ["-c", SERVE, "serve", *options], _silent) as server:
        ready = time.monotonic() - start
        assert server.process is not None
        at_ready = _memory(server.process)
        with httpx.Client(timeout=60) as client:
            for _ in range(ASKED):
                files = [("images", picture)] * LARGE
                client.post(f"{server.url}/classify", files=files, params={"policy": "accurate"}).raise_for_status()
        return {"ready_seconds": ready, "mib_ready": at_ready, "mib_after": _memory(server.process)}


def _memory(process: int) -> float:
    """MiB of a process and its children; what they share counts once (PSS)."""
    kilobytes = 0
    for pid in family(process):
        said = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kilobytes += sum(int(number) for number in re.findall(r"^Pss: +(\d+) kB", said, flags=re.MULTILINE))
    return kilobytes / 1024


def _silent(words: str) -> None:
    """Progress of single processes is nothing to tell."""
