"""How many processes answer, and where the engine runs."""

import sys
from dataclasses import dataclass

from msmlp.model.backends.settings import MAX_CAPACITY, MEMORY_SHARE
from msmlp.model.errors import OptionError
from msmlp.model.platform import cores, free_host_memory
from msmlp.model.weights import Calibration, Weights
from msmlp.service.engine.process.memory import PEERS
from msmlp.service.engine.transport import MOST_SECONDS
from msmlp.service.settings import Settings

WORKER_BYTES, PER_WEIGHT_BYTE = 200 * 2**20, 4
"""Memory of one front end with its engine inside: some bytes, and a multiple of its weights. 140 MiB were resident with
weights of 2 MB, and 940 with weights of 197 (as read, as graphs, and twice in ONNX Runtime); the rest is for bodies and
batches."""

ENGINE_BYTES = 700 * 2**20
"""The same for an engine's process, which mostly has torch: 640 MiB were resident with weights of 2 MB, on a CPU."""

MOST_BY_A_GPU = 8
"""Front ends before GPUs unless `--frontends` says otherwise: a first choice, not measured yet."""


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
        places = {
            "inline": "an engine inside",
            "thread": "an engine in a thread",
            "process": "an engine process per device",
        }
        number = f"{self.frontends} front end{'s' * (self.frontends > 1)}"
        each = " each" if self.frontends > 1 and self.engine != "process" else ""
        return f"{number}, {places[self.engine]}{each}: {self.why}"


def layout_here(settings: Settings, name: str, device: str, weights: Weights, calibration: Calibration) -> Layout:
    """The layout on this machine."""
    slowest = max(calibration.file.cpu_ms or (0.0,))
    size, memory = weights.nbytes, free_host_memory()
    return resolve(settings, name, device, size, cores=cores(), free_memory=memory, slowest_ms=slowest)


def resolve(
    settings: Settings,
    name: str,
    device: str,
    weights_bytes: int,
    *,
    cores: int,
    free_memory: int,
    slowest_ms: float = 0.0,
    platform: str = sys.platform,
) -> Layout:
    """The layout for the backend `name` on `device` (cpu or cuda), on a machine with `free_memory` bytes to take; the
    slowest stage was measured to take `slowest_ms` an image.
    """
    slow = slowest_ms > 1e3 * MOST_SECONDS
    engine = "process" if settings.devices is not None else _engine(settings.engine, name, device, slow=slow)
    if platform != "linux":
        return Layout(1, engine, "more than one needs Linux")
    if settings.frontends != "auto":
        if engine == "process" and settings.frontends > PEERS:
            detail = f"{settings.frontends} with an engine process; expected at most {PEERS}"
            raise OptionError("--frontends", detail)
        return Layout(settings.frontends, engine, f"set to {settings.frontends}")
    # The largest request must fit into one of them.
    fit = {"--max-bodies-bytes is divided": settings.max_bodies_bytes // settings.max_body_bytes}
    if device != "cpu":
        return _least({f"for a GPU, by {cores} cores": min(MOST_BY_A_GPU, cores // 2), **fit}, engine)
    if engine != "inline":
        return Layout(1, engine, f"its engine uses all {cores} cores")
    each = WORKER_BYTES + PER_WEIGHT_BYTE * weights_bytes
    bounds = {
        f"one per core ({cores})": cores,
        f"{free_memory / 2**30:.1f} GiB of memory are free": int((1 - MEMORY_SHARE) * free_memory) // each,
        **fit,
        "--capacity is divided": (settings.capacity or MAX_CAPACITY) // settings.max_images,
    }
    return _least(bounds, engine)


def _least(bounds: dict[str, int], engine: str) -> Layout:
    why = min(bounds, key=lambda reason: bounds[reason])
    return Layout(max(1, bounds[why]), engine, why)


def _engine(wanted: str, name: str, device: str, *, slow: bool) -> str:
    """`auto` takes a process for torch, for a GPU and for stages that would hold an event loop up; the front end itself
    for others of ONNX Runtime on a CPU.

    A stage of torch is dozens of small operations, each of which would wait for the interpreter that the web side
    holds; ONNX Runtime's is one. And a GPU's errors can outlive their cause, but not the process.
    """
    if wanted != "auto":
        return wanted
    return "process" if name == "torch" or device != "cpu" or slow else "inline"


def memory_needed(layout: Layout, weights_bytes: int, engines: int) -> int:
    """Bytes that the front ends of a layout take, with the processes of `engines` engines."""
    computing = PER_WEIGHT_BYTE * weights_bytes
    if not engines:
        return layout.frontends * (WORKER_BYTES + computing)
    return engines * (ENGINE_BYTES + computing) + layout.frontends * (WORKER_BYTES + weights_bytes)


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
                "max_connections": part(settings.max_connections, index),
                "decode_threads": part(settings.decode_threads, index),
            }
        )
        for index in range(number)
    ]
