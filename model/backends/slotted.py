"""An exported stage → the same stage over slabs: what it reads is gathered, what it leaves is scattered, by slot.

ONNX Runtime has no other way to keep features on a device between batches of ever other images. A slab is input and
output at once: where both are bound to the same memory, the scatter writes into it and copies nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

ROWS = "rows"
"""Input: int64 [n], which rows of the slabs the images of a batch have."""


@dataclass(frozen=True)
class SlottedStage:
    """The graph, and its slabs: those that it reads and those that it writes, by tensor of the stage."""

    graph: bytes
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def slotted_stages(graphs: Sequence[bytes]) -> list[SlottedStage]:
    """Wrap the graphs of all stages (model/export/trace.py).

    Returns:
        Inputs `pixels`, `rows` where there are slabs, and a slab called as each of `reads` (`upstream`, `previous`) and
        of `writes` (`features`, `probabilities`) with `_slab`; outputs `probabilities`, `score`, and each slab written,
        with `_out`.
    """
    models = [onnx.load_from_string(graph) for graph in graphs]
    # What nobody reads is not kept.
    read = [{each.name for each in model.graph.input} for model in models[1:]]
    return [
        _slotted(model, (*["features"] * ("upstream" in names), *["probabilities"] * ("previous" in names)))
        for model, names in zip(models, [*read, set()], strict=True)
    ]


def _slotted(model: onnx.ModelProto, writes: tuple[str, ...]) -> SlottedStage:
    body = model.graph
    reads = tuple(each.name for each in body.input if each.name in ("upstream", "previous"))
    tensors = {each.name: each for each in (*body.input, *body.output)}
    rows = helper.make_tensor_value_info(ROWS, TensorProto.INT64, ["n"])
    inputs = [tensors["pixels"], *[rows] * bool(reads or writes)]
    outputs = [tensors["probabilities"], tensors["score"]]
    gathers = [helper.make_node("Gather", [_slab(name), ROWS], [name], name=f"gather_{name}") for name in reads]
    inputs += [_like(tensors[name], _slab(name)) for name in reads]
    scatters = []
    if writes:
        body.initializer.append(helper.make_tensor("rows_axis", TensorProto.INT64, [1], [1]))
        scatters.append(helper.make_node("Unsqueeze", [ROWS, "rows_axis"], ["rows_column"], name="rows_column"))
    for name in writes:
        written = f"{_slab(name)}_out"
        scatters.append(
            helper.make_node("ScatterND", [_slab(name), "rows_column", name], [written], name=f"scatter_{name}")
        )
        inputs.append(_like(tensors[name], _slab(name)))
        outputs.append(_like(tensors[name], written))
    nodes = [*gathers, *body.node, *scatters]
    whole = helper.make_graph(nodes, body.name, inputs, outputs, list(body.initializer))
    made = helper.make_model(whole, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    made.functions.extend(model.functions)
    onnx.checker.check_model(made)
    return SlottedStage(made.SerializeToString(), reads, writes)


def _slab(name: str) -> str:
    return f"{name}_slab"


def _like(tensor: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A slab of such rows: the batch's dimension becomes the number of slots."""
    kind = tensor.type.tensor_type
    dims = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
    return helper.make_tensor_value_info(name, kind.elem_type, ["slots", *dims[1:]])
