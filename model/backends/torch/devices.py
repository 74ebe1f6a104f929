"""The devices torch can use: which one, in which number format, and what the backend asks of a GPU or a CPU.

A GPU has pinned buffers, events, and a CUDA graph per (stage, bucket). See docs/not-run.md.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import cast

import torch
from torch import Tensor

from msmlp.model.errors import OptionError
from msmlp.model.platform import free_host_memory

Step = Callable[[int, int], None]
"""Runs a stage in a bucket, between the device's buffers."""

RUNS_BEFORE_CAPTURE = 2
"""In the first run, libraries make handles and workspaces, which no CUDA graph can hold."""


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one; OptionError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise OptionError("device", f"{name!r} is unknown; expected one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        reason = "torch sees no GPU: msmlp doctor says more"
        raise OptionError("device", f"cuda is not available here ({reason}); use auto or cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU: few CPUs have instructions for bfloat16, which slows down the
    others. OptionError for a dtype that no stage runs in."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    except KeyError:
        raise OptionError("dtype", f"{name!r} is not supported; expected one of auto, float32, bfloat16") from None


class Event:
    """A mark in the device's queue; a CPU's queue is always empty."""

    def record(self) -> None:
        """Put it after everything that is queued now."""

    def synchronize(self) -> None:
        """Wait until the device has passed it; one that was never recorded counts as passed."""


class Driver:
    """What differs between devices; here that of a CPU, where every call has done its work when it returns."""

    in_flight = 1
    """Batches launched before one is collected."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        if self.device.type == "cpu":
            set_threads()

    def free_memory(self) -> int:
        """Bytes that this process can still take there."""
        return free_host_memory()

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A buffer on the host that the device copies from and to by itself."""
        return torch.zeros(*shape, dtype=dtype)

    def event(self) -> Event:
        return Event()

    def replaying(self, step: Step) -> Step:
        """`step`, made cheap to run again; it always does the same with the same buffers."""
        return step


@cache  # a second backend in the same process would take one more core away
def set_threads() -> None:
    """Set torch's threads, on the thread that will compute; OMP_NUM_THREADS outranks this."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for(torch.get_num_threads()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(cores: int) -> int:
    """All cores but one, which is left to the event loop and the decoders.

    Every operation ends when its last thread does. A thread that shares its core delays the others for the milliseconds
    until it gets the core back, where the operation itself takes microseconds.
    """
    return max(1, cores - 1)


class CudaDriver(Driver):
    """One GPU, by the current stream of the thread that owns it."""

    in_flight = 2

    def free_memory(self) -> int:
        # Not platform.free_gpu_memory, which knows the first GPU only: this asks for the device in use.
        free, _total = torch.cuda.mem_get_info(self.device)
        return free

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        # Pinned: the host does not wait for copies.
        return torch.zeros(*shape, dtype=dtype, pin_memory=True)

    def event(self) -> Event:
        return cast(Event, torch.cuda.Event())  # it has both methods

    def replaying(self, step: Step) -> Step:
        return _Graphs(step)


def exact() -> AbstractContextManager[None]:
    """With TF32, float32 answers would differ from the CPU's; with benchmarking, from one run to the next."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class _Graphs:
    """Runs `step(stage, bucket)` as a CUDA graph, captured on first use: warm-up uses them all.

    All share one memory pool: only one graph runs at a time, and results go to the backend's buffers. Captures share a
    stream, as graphs captured on different streams would not share the pool.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()

    def __call__(self, stage: int, bucket: int) -> None:
        graph = self._graphs.get((stage, bucket))
        if graph is None:
            try:
                graph = self._graphs[stage, bucket] = self._captured(stage, bucket)
            except BaseException:
                torch.cuda.empty_cache()  # smaller buckets may still fit
                raise
        graph.replay()

    def _captured(self, stage: int, bucket: int) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._side.wait_stream(stream)
        with torch.cuda.stream(self._side), exact():
            for _ in range(RUNS_BEFORE_CAPTURE):
                self._step(stage, bucket)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                self._step(stage, bucket)
        stream.wait_stream(self._side)
        return graph
