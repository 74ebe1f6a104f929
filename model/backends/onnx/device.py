"""An exported stage → the same stage over slabs: what it reads is gathered, what it leaves is scattered, by slot.

ONNX Runtime has no other way to keep features on a device between batches of ever other images. A slab is input and
output at once: where both are bound to the same memory, the scatter writes into it and copies nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from msmlp.model.backends.onnx.providers import BY_NAME, Provider, open_session
from msmlp.model.backends.onnx.slots import OnnxSlots, features_dtype
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.platform.gpu import free_gpu_memory
from msmlp.model.platform.memory import failures

ROWS = "rows"
"""Input: int64 [n], which rows of the slabs the images of a batch have."""


@dataclass(frozen=True)
class SlottedStage:
    """The graph, and whether it reads a slab of features and writes one."""

    graph: bytes
    reads: bool
    writes: bool


def slotted_stages(graphs: Sequence[bytes]) -> list[SlottedStage]:
    """Wrap the graphs of all stages (model/export/graph_stage.py).

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


# FROM model/backends/onnx/device.py:
# The ONNX Runtime backend of a device with memory of its own: features stay there, in slabs (slotted.py).


@dataclass
class _Bound:
    """One stage's batch of one size: what changes from batch to batch, and the binding of all."""

    binding: Any
    pixels: Any
    rows: Any
    score: Any
    probabilities: Any


class OnnxDeviceBackend(OnnxSlots):
    """Exported stages on a device."""

    def __init__(
        self,
        cascade: CascadeConfig,
        graphs: Sequence[bytes],
        settings: BackendSettings,
        provider: Provider | None = None,
    ) -> None:
        """Build the sessions and the slabs.

        Args:
            cascade: what the graphs were exported from.
            graphs: one per stage (model/weights/graphs.py).
            settings: their dtype is that of the graphs.
            provider: what runs them, instead of the one that the settings name.
        """
        provider = provider or BY_NAME[settings.provider]
        super().__init__(cascade, settings, free_gpu_memory)
        self.device, self._provider = provider.device, provider
        self._graphs = slotted_stages(graphs)
        self._sessions = [open_session(each.graph, provider, self.dtype) for each in self._graphs]
        # By stage that writes them.
        self._slabs = {
            k: self._zeros((self.capacity + 1, cascade.tokens(k), stage.width), features_dtype(self.dtype))
            for k, stage in enumerate(cascade.stages)
            if self._graphs[k].writes
        }
        self._bound: dict[tuple[int, int], _Bound] = {}

    @failures()
    def launch(self, stage: int, slots: Slots) -> StageOutput:
        """Run stage `stage` over `slots`, padded to the bucket, and wait for it."""
        rows = np.full(bucket_of(self.buckets, len(slots)), self.capacity)
        rows[: len(slots)] = slots
        try:
            bound = self._run(stage, rows)
        except Exception:
            if not self._sessions[stage].captures:
                raise
            # What cannot be captured may only show in the first run.
            graph = self._graphs[stage].graph
            self._sessions[stage] = open_session(graph, self._provider, self.dtype, capture=False)
            self._bound = {key: each for key, each in self._bound.items() if key[0] != stage}
            bound = self._run(stage, rows)
        # Copies: the same memory answers the next batch.
        score, probabilities = bound.score.numpy()[: len(slots)], bound.probabilities.numpy()[: len(slots)]
        return StageOutput(score.copy(), probabilities.copy())

    def _run(self, stage: int, rows: Slots) -> _Bound:
        bound = self._bound.get((stage, len(rows))) or self._bind(stage, len(rows))
        bound.rows.update_inplace(rows)
        bound.pixels.update_inplace(self._pixels[rows])
        options = onnxruntime.RunOptions()
        if self._sessions[stage].captures:
            options.add_run_config_entry("gpu_graph_id", str(len(rows)))
        self._sessions[stage].session.run_with_iobinding(bound.binding, options)
        return bound

    def _bind(self, stage: int, bucket: int) -> _Bound:
        binding, graph = self._sessions[stage].session.io_binding(), self._graphs[stage]
        bound = _Bound(
            binding,
            pixels=self._zeros((bucket, self.size, self.size, 3), np.uint8),
            rows=self._zeros((bucket,), np.int64),
            score=self._zeros((bucket,), np.float32),
            probabilities=self._zeros((bucket, self.classes), np.float32),
        )
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
