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
    """The graph, and whether it reads a slab of features and writes one."""

    graph: bytes
    reads: bool
    writes: bool


def slotted_stages(graphs: Sequence[bytes]) -> list[SlottedStage]:
    """Wrap the graphs of all stages (model/export/trace.py).

    Returns:
        Inputs `pixels`, `rows` where there are slabs, `upstream_slab` where it reads and `features_slab` where it
        writes; outputs `probabilities`, `score`, and `features_slab_out` where it writes.
    """
    models = [onnx.load_from_string(graph) for graph in graphs]
    reads = ["upstream" in {each.name for each in model.graph.input} for model in models]
    # Features that no stage reads are not kept.
    return [_slotted(*each) for each in zip(models, reads, [*reads[1:], False], strict=True)]


def _slotted(model: onnx.ModelProto, reads: bool, writes: bool) -> SlottedStage:
    body = model.graph
    tensors = {each.name: each for each in (*body.input, *body.output)}
    inputs, outputs = [tensors["pixels"]], [tensors["probabilities"], tensors["score"]]
    gather, scatter = [], []
    if reads or writes:
        inputs.append(helper.make_tensor_value_info(ROWS, TensorProto.INT64, ["n"]))
    if reads:
        inputs.append(_slab(tensors["upstream"], "upstream_slab"))
        gather = [helper.make_node("Gather", ["upstream_slab", ROWS], ["upstream"], name="gather")]
    if writes:
        inputs.append(_slab(tensors["features"], "features_slab"))
        outputs.append(_slab(tensors["features"], "features_slab_out"))
        body.initializer.append(helper.make_tensor("rows_axis", TensorProto.INT64, [1], [1]))
        written = ["features_slab", "rows_column", "features"]
        scatter = [
            helper.make_node("Unsqueeze", [ROWS, "rows_axis"], ["rows_column"], name="rows_column"),
            helper.make_node("ScatterND", written, ["features_slab_out"], name="scatter"),
        ]
    nodes = [*gather, *body.node, *scatter]
    whole = helper.make_graph(nodes, body.name, inputs, outputs, list(body.initializer))
    made = helper.make_model(whole, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    made.functions.extend(model.functions)
    onnx.checker.check_model(made)
    return SlottedStage(made.SerializeToString(), reads, writes)


def _slab(tensor: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A slab of such rows: the batch's dimension becomes the number of slots."""
    kind = tensor.type.tensor_type
    dims = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
    return helper.make_tensor_value_info(name, kind.elem_type, ["slots", *dims[1:]])
