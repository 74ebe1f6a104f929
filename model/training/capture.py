"""A training step as one CUDA graph, launched with one call instead of a thousand.

A graph replays the same kernels on the same buffers with the same Python numbers. So a captured function may depend on
nothing that changes except its input tensors, which are copied into the graph's own.

See docs/not-run.md.
"""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], Tensor]
Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Records work on fixed buffers and returns its replay. Recording need not do the work: a replay follows."""

WARMUP_CALLS = 3
"""Ordinary calls before the capture: they compile, and allocate optimizer state and library workspaces, which a graph
cannot."""

log = logging.getLogger(__name__)


class Captured:
    """`function` of tensors of fixed shapes, recorded by `record` after WARMUP_CALLS calls of `warmup` (default: the
    function). If recording fails, it warns once and keeps calling the function."""

    def __init__(self, function: Function, record: Record, warmup: Function | None = None) -> None:
        self._function, self._record, self._warmup = function, record, warmup or function
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None
        self._replay: Work | None = None

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        """`function(inputs)`, in a tensor that no later call overwrites."""
        self._calls += 1
        if self._calls <= WARMUP_CALLS:
            return self._warmup(inputs)
        if self._calls == WARMUP_CALLS + 1:
            self._capture(inputs)
        if self._replay is None:
            return self._function(inputs)
        torch._foreach_copy_(self._inputs, inputs)
        self._replay()
        assert self._output is not None
        return self._output.clone()

    def _capture(self, inputs: list[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]

        def work() -> None:
            self._output = self._function(self._inputs)

        try:
            self._replay = self._record(work)
        except RuntimeError as error:
            self._inputs, self._output = [], None
            reason = str(error).split("\n")[0]
            log.warning("the training step cannot be captured as a CUDA graph (%s); continuing without", reason)


def as_cuda_graph(function: Function) -> Function:
    return Captured(function, record_cuda_graph, warmup=on_side_stream(function))


def record_cuda_graph(work: Work) -> Work:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # The outer context leaves the capture's stream even if ending the capture fails.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        work()
    replay: Work = graph.replay
    return replay


def on_side_stream(function: Function) -> Function:
    """`function` on a stream of its own, as torch asks for before a capture: autograd would otherwise remember the
    default stream, which cannot be captured."""
    side = torch.cuda.Stream()

    def run(inputs: list[Tensor]) -> Tensor:
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side), warnings.catch_warnings():
            # Optimizers made capturable warn when they run uncaptured.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            output = function(inputs)
        current.wait_stream(side)
        return output

    return run
