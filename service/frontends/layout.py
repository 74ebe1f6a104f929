"""How many processes answer, and where the engine runs. Pure: the machine's numbers are arguments."""

import sys
from dataclasses import dataclass

from msmlp.model.backends.settings import MAX_CAPACITY, MEMORY_SHARE
from msmlp.service.settings import Settings

WORKER_BYTES = 200 * 2**20
"""Memory of one front end with its engine inside: 140 MiB were resident with the default weights and one connection,
few of them shared; the rest is for bodies, larger weights and batches."""

MOST_BY_A_GPU = 8
"""Front ends for one GPU unless `--frontends` says otherwise: that many decode more than one engine process takes."""


@dataclass(frozen=True)
class Layout:
    """`frontends` processes that answer; `engine` is inline or thread (one in each), or process (all share it)."""

    frontends: int
    engine: str
    why: str

    @property
    def share(self) -> int:
        """How many engines divide what the settings allow, and the machine."""
        return 1 if self.engine == "process" else self.frontends

    def __str__(self) -> str:
        places = {"inline": "an engine inside", "thread": "an engine in a thread", "process": "one engine process"}
        number = f"{self.frontends} front end{'s' * (self.frontends > 1)}"
        each = " each" if self.frontends > 1 and self.engine != "process" else ""
        return f"{number}, {places[self.engine]}{each}: {self.why}"


def resolve(
    settings: Settings, name: str, device: str, *, cores: int, free_memory: int, platform: str = sys.platform
) -> Layout:
    """The layout for the backend `name` on `device` (cpu or cuda), on a machine with `free_memory` bytes to take."""
    engine = _engine(settings.engine, name, device)
    if platform != "linux":
        return Layout(1, engine, "several need Linux")
    if settings.frontends != "auto":
        return Layout(settings.frontends, engine, f"set to {settings.frontends}")
    if device != "cpu":
        return Layout(min(MOST_BY_A_GPU, max(1, cores // 2)), engine, f"for a GPU, by {cores} cores")
    if engine != "inline":
        return Layout(1, engine, f"the engine has the {cores} cores")
    bounds = {
        f"one a core ({cores})": cores,
        f"{free_memory / 2**30:.1f} GiB of memory are free": int((1 - MEMORY_SHARE) * free_memory) // WORKER_BYTES,
        # The largest request must fit into one of them.
        "--max-bodies-bytes is divided": settings.max_bodies_bytes // settings.max_body_bytes,
        "--capacity is divided": (settings.capacity or MAX_CAPACITY) // settings.max_images,
    }
    why = min(bounds, key=lambda reason: bounds[reason])
    return Layout(max(1, bounds[why]), engine, why)


def _engine(wanted: str, name: str, device: str) -> str:
    """`auto` takes a process for torch and for a GPU, and the front end itself for ONNX Runtime on a CPU.

    A stage of torch is dozens of small operations, each of which would wait for the interpreter that the web side
    holds; ONNX Runtime's is one. And a GPU's errors can outlive their cause, but not the process.
    """
    if wanted != "auto":
        return wanted
    return "process" if name == "torch" or device != "cpu" else "inline"


def divide(settings: Settings, layout: Layout) -> list[Settings]:
    """The settings of each front end: limits on the command line are totals, and `capacity` is each engine's own."""
    number, capacity = layout.frontends, settings.capacity

    def part(total: int, index: int) -> int:
        return max(1, (total + index) // number)  # adds up to the total

    return [
        settings.model_copy(
            update={
                "frontends": 1,
                "engine": layout.engine,
                "capacity": part(capacity, index) if capacity and layout.share > 1 else capacity,
                "max_bodies_bytes": part(settings.max_bodies_bytes, index),
                "decode_threads": part(settings.decode_threads, index),
            }
        )
        for index in range(number)
    ]
