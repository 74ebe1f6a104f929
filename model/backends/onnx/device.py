"""The ONNX Runtime backend of a GPU: features stay in its memory, in slabs.

ONNX Runtime cannot keep features on a device between batches of different images. So each exported stage becomes a
*slab graph*: it gathers its inputs from slabs by slot, and scatters its features into one. A slab is both input and
output: bound to the same memory, so that the scatter writes in place and copies nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from msmlp.model.backends.onnx.base import (
    BY_NAME,
    OnnxSlots,
    Provider,
    features_dtype,
    open_session,
    open_sessions,
    warn_uncaptured,
)
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of, device_errors
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.platform import free_gpu_memory
from msmlp.model.shape import CascadeShape

ROWS = "rows"
"""An input, int64 [n]: the rows of the slabs that hold the images of a batch."""


@dataclass(frozen=True)
class SlabGraph:
    """A stage over slabs: whether it reads upstream features from one, and writes its own into one."""

    graph: bytes
    reads: bool
    writes: bool


def slab_graphs(graphs: Sequence[bytes]) -> list[SlabGraph]:
    """Wrap the graphs of all stages (model/export/graph_stage.py).

    Their inputs: `pixels` if the graph has them, `rows` if there are slabs, `upstream_slab` if it reads and
    `features_slab` if it writes. Their outputs: `probabilities`, `score`, and `features_slab_out` if it writes.
    """
    models = [onnx.load_from_string(graph) for graph in graphs]
    reads = ["upstream" in {each.name for each in model.graph.input} for model in models]
    # Features that no stage reads are dropped.
    return [_slab_graph(*each) for each in zip(models, reads, [*reads[1:], False], strict=True)]


def _slab_graph(model: onnx.ModelProto, reads: bool, writes: bool) -> SlabGraph:
    body = model.graph
    tensors = {each.name: each for each in (*body.input, *body.output)}
    inputs, outputs = [*filter(None, [tensors.get("pixels")])], [tensors["probabilities"], tensors["score"]]
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
    return SlabGraph(made.SerializeToString(), reads, writes)


def _slab(tensor: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A slab of such tensors: the batch's dimension becomes the number of slots."""
    kind = tensor.type.tensor_type
    dims = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
    return helper.make_tensor_value_info(name, kind.elem_type, ["slots", *dims[1:]])


@dataclass
class _Bound:
    """The buffers of one stage in one bucket, and their binding."""

    binding: Any
    pixels: Any
    rows: Any
    score: Any
    probabilities: Any


class OnnxDeviceBackend(OnnxSlots):
    def __init__(
        self,
        shape: CascadeShape,
        graphs: Sequence[bytes],
        settings: BackendSettings,
        provider: Provider | None = None,
    ) -> None:
        """Build the sessions and the slabs for `graphs`, one per stage, whose dtype is that of `settings`.

        `provider` replaces the one that the settings name.
        """
        provider = provider or BY_NAME[settings.provider]
        super().__init__(shape, settings, free_gpu_memory)
        self.device, self._provider = provider.device, provider
        self._graphs = slab_graphs(graphs)
        self._sessions = open_sessions([each.graph for each in self._graphs], provider, self.dtype)
        # By the stage that writes them.
        self._slabs = {
            k: self._zeros((self.capacity + 1, *each), features_dtype(self.dtype))
            for k, each in enumerate(shape.features)
            if each is not None and self._graphs[k].writes
        }
        self._bound: dict[tuple[int, int], _Bound] = {}

    @device_errors()
    def launch(self, stage: int, slots: Slots) -> StageOutput:
        """Run stage `stage` over `slots`, padded to the bucket, and wait for it."""
        rows = np.full(bucket_of(self.buckets, len(slots)), self.capacity)
        rows[: len(slots)] = slots
        try:
            bound = self._run(stage, rows)
        except Exception as error:
            if not self._sessions[stage].captures:
                raise
            # An operation that cannot be captured may only show in the first run.
            graph = self._graphs[stage].graph
            self._sessions[stage] = open_session(graph, self._provider, self.dtype, capture=False)
            self._bound = {key: each for key, each in self._bound.items() if key[0] != stage}
            bound = self._run(stage, rows)
            warn_uncaptured(error)
        # Copies: the next batch reuses this memory.
        score, probabilities = bound.score.numpy()[: len(slots)], bound.probabilities.numpy()[: len(slots)]
        return StageOutput(score.copy(), probabilities.copy())

    def _run(self, stage: int, rows: Slots) -> _Bound:
        bound = self._bound.get((stage, len(rows))) or self._bind(stage, len(rows))
        bound.rows.update_inplace(rows)
        if (view := self._shape.reads[stage]) is not None:
            bound.pixels.update_inplace(self._views[view][rows])
        options = onnxruntime.RunOptions()
        if self._sessions[stage].captures:
            options.add_run_config_entry("gpu_graph_id", str(len(rows)))
        self._sessions[stage].session.run_with_iobinding(bound.binding, options)
        return bound

    def _bind(self, stage: int, bucket: int) -> _Bound:
        binding, graph = self._sessions[stage].session.io_binding(), self._graphs[stage]
        view = self._shape.reads[stage]
        bound = _Bound(
            binding,
            pixels=None if view is None else self._zeros((bucket, *self._views[view].shape[1:]), np.uint8),
            rows=self._zeros((bucket,), np.int64),
            score=self._zeros((bucket,), np.float32),
            probabilities=self._zeros((bucket, self.classes), np.float32),
        )
        if bound.pixels is not None:
            binding.bind_ortvalue_input("pixels", bound.pixels)
        if graph.reads or graph.writes:
            binding.bind_ortvalue_input(ROWS, bound.rows)
        binding.bind_ortvalue_output("score", bound.score)
        binding.bind_ortvalue_output("probabilities", bound.probabilities)
        if graph.reads:
            binding.bind_ortvalue_input("upstream_slab", self._slabs[stage - 1])
        if graph.writes:
            binding.bind_ortvalue_input("features_slab", self._slabs[stage])
            binding.bind_ortvalue_output("features_slab_out", self._slabs[stage])
        self._bound[stage, bucket] = bound
        return bound

    def _zeros(self, shape: tuple[int, ...], kind: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=kind), self._provider.memory, 0)
