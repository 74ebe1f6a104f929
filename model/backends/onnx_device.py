"""The ONNX Runtime backend of a device with memory of its own: features stay there, in slabs (slotted.py).

Pixels wait in the host's memory, 3 bytes each, and go along with every batch. All that a batch of one bucket reads and
writes is bound once, to memory that stays where it is: that is what CUDA graphs need, and it allocates nothing later.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msmlp.model.backends.gpu import free_gpu_memory
from msmlp.model.backends.memory import failures
from msmlp.model.backends.onnx_slots import OnnxSlots, features_dtype
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of
from msmlp.model.backends.providers import BY_NAME, Provider, open_session
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.slotted import ROWS, slotted_stages
from msmlp.model.nn.config import CascadeConfig

# See onnx.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


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
