"""The CUDA side of the staged backend (staged.py): pinned buffers, events, and a graph per (stage, bucket).

Not yet measured: needs a GPU.
"""

import torch
from torch import Tensor

from msmlp.model.backends.torch.devices import Event, Step

BEFORE_CAPTURE = 2
"""Runs before a capture: in the first, libraries make handles and workspaces, which no graph can hold."""


class CudaDriver:
    """One GPU, by the current stream of the thread that owns it."""

    in_flight = 2

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Pinned memory: copies from and to it wait for nobody."""
        return torch.zeros(*shape, dtype=dtype, pin_memory=True)

    def event(self) -> Event:
        """One that was never recorded counts as passed."""
        event: Event = torch.cuda.Event()
        return event

    def replaying(self, step: Step) -> Step:
        """A graph per (stage, bucket)."""
        return Graphs(step)


class Graphs:
    """Runs `step(stage, bucket)` as a CUDA graph, captured when it is first wanted: warm-up wants them all.

    Only one graph runs at a time and none leaves anything behind but in buffers that are not its own, so all share one
    memory pool, and one stream to capture on, without which they would not share it.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()

    def __call__(self, stage: int, bucket: int) -> None:
        """Queue it."""
        graph = self._graphs.get((stage, bucket))
        if graph is None:
            try:
                graph = self._graphs[stage, bucket] = self._captured(stage, bucket)
            except BaseException:
                torch.cuda.empty_cache()  # smaller buckets may still find room
                raise
        graph.replay()

    def _captured(self, stage: int, bucket: int) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._side.wait_stream(stream)
        # TF32 would make fp32 answers others than the CPU's; the fastest of several algorithms is whichever won today.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.cuda.stream(self._side), exact:
            for _ in range(BEFORE_CAPTURE):
                self._step(stage, bucket)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                self._step(stage, bucket)
        stream.wait_stream(self._side)
        return graph
