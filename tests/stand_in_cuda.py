"""A CPU that stands in for a GPU, so that all the code around CUDA graphs runs where there is none.

A graph here is as strict as a real one: it notes the tensor operations of its capture, refuses those that wait for the
device, and repeats exactly these, on the same memory and with the same Python numbers. Streams are nothing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msmlp.model.backends.torch.devices import Event

GIB = 2**30

WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations that read back from the device, which a graph refuses."""


class Notes(TorchDispatchMode):
    """Every operation with the tensors it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.name() in WAITS:
            raise RuntimeError(f"{operation.name()} waits for the device")
        result = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def repeat(self) -> None:
        """All of it again, into the same memory."""
        for operation, args, kwargs, result in self.operations:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class Graph:
    """A real graph does not do the work while it is captured, this one does: so its first replay does nothing."""

    def __init__(self) -> None:
        self.notes, self.done = Notes(), False

    def replay(self) -> None:
        if not self.done:
            self.notes.repeat()
        self.done = False


class Capture:
    """`with torch.cuda.graph(graph):`."""

    def __init__(self, graph: Graph, pool: object = None, stream: object = None) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        self.graph.notes.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.graph.notes.__exit__(*error)
        self.graph.done = True


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        """Everything is done as soon as it is asked for."""


def _stream(stream: Stream) -> AbstractContextManager[None]:
    return nullcontext()


def _nothing(*_: object) -> None:
    pass


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on torch.cuda is what is above; tensors are a CPU's."""
    stands_in: dict[str, Callable[..., object]] = {
        "CUDAGraph": Graph,
        "graph": Capture,
        "graph_pool_handle": object,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": _stream,
        "Event": Event,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "mem_get_info": lambda device: (GIB, 2 * GIB),
    }
    for name, what in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, what)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, pin_memory=False, **options: zeros(*shape, **options))
    # torch has optimizers that read nothing back on GPUs only, though they work on a CPU.
    monkeypatch.setattr(import_module("torch.optim.adam"), "_get_capturable_supported_devices", lambda **_: ["cpu"])
