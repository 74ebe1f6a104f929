"""A training step as one CUDA graph: the device gets it with one call instead of a thousand.

A graph repeats what it saw, with the very same buffers and numbers. So a function that is captured reads nothing that
changes but the tensors it is given, and those are copied to where the graph looks for them.

Not yet measured: needs a GPU.
"""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], Tensor]
Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Takes work between buffers that stay; gives what repeats it. Whether recording also does the work is its own affair:
the repetition that follows at once must leave what doing it once leaves."""

BEFORE_CAPTURE = 3
"""Calls before the capture. They compile, allocate what optimizers keep, and make libraries' workspaces, none of which
a graph can hold."""

log = logging.getLogger(__name__)


def plainly(function: Function) -> Function:
    """`function` as it is: for devices that start work at no cost."""
    return function


def on_cuda(function: Function) -> Function:
    """`function` as a CUDA graph."""
    return Captured(function, cuda_graph, before=aside(function))


class Captured:
    """`function` of tensors whose shapes never change, recorded by `record` after BEFORE_CAPTURE ordinary calls.

    `before` is what is called until then, by default the function itself. If it cannot be recorded it goes on as
    ordinary calls, and says so once.
    """

    def __init__(self, function: Function, record: Record, before: Function | None = None) -> None:
        self._function, self._record, self._before = function, record, before or function
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None
        self._repeat: Work | None = None

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        """`function(inputs)`, as a tensor of its own."""
        self._calls += 1
        if self._calls <= BEFORE_CAPTURE:
            return self._before(inputs)
        if self._calls == BEFORE_CAPTURE + 1:
            self._capture(inputs)
        if self._repeat is None:
            return self._function(inputs)
        torch._foreach_copy_(self._inputs, inputs)
        self._repeat()
        assert self._output is not None
        return self._output.clone()

    def _capture(self, inputs: list[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]

        def work() -> None:
            self._output = self._function(self._inputs)

        try:
            self._repeat = self._record(work)
        except RuntimeError as error:
            self._inputs, self._output = [], None
            why = str(error).split("\n")[0]
            log.warning("the training step could not be captured (%s); it goes on uncaptured", why)


def aside(function: Function) -> Function:
    """`function` on a stream of its own, as torch wants it before a capture: else autograd would remember the default
    stream, which cannot be captured."""
    side = torch.cuda.Stream()

    def run(inputs: list[Tensor]) -> Tensor:
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side), warnings.catch_warnings():
            # Of optimizers that can be captured and are not yet.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            output = function(inputs)
        current.wait_stream(side)
        return output

    return run


def cuda_graph(work: Work) -> Work:
    """`work` as a CUDA graph; recording does nothing else."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # The outer context leaves the capture's stream even where ending the capture fails.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        work()
    replay: Work = graph.replay
    return replay
