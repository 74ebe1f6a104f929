"""The ONNX Runtime backend of a CPU: slabs are numpy arrays, one session a stage, batches cut into parts (parts.py)."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.memory import failures, free_host_memory
from msmlp.model.backends.onnx_slots import OnnxSlots, features_dtype
from msmlp.model.backends.parts import Crew, part_of
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.nn.config import CascadeConfig

# Read when ONNX Runtime is imported, which would else send usage events and write a device id for them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class OnnxBackend(OnnxSlots):
    """Exported stages (model/export)."""

    device = "cpu"

    def __init__(
        self,
        cascade: CascadeConfig,
        graphs: Sequence[bytes],
        settings: BackendSettings,
        *,
        threads: int | None = None,
    ) -> None:
        """Build the sessions and the slabs.

        Args:
            cascade: what the graphs were exported from.
            graphs: one per stage (model/weights/graphs.py).
            settings: their dtype is that of the graphs.
            threads: that run parts of a batch; None for as many as the process has cores.
        """
        super().__init__(cascade, settings, free_host_memory)
        self._crew = Crew(threads)
        self._sessions = [_session(graph) for graph in graphs]
        self._features = [
            np.zeros((self.capacity + 1, cascade.tokens(k), stage.width), dtype=features_dtype(self.dtype))
            for k, stage in enumerate(cascade.stages[:-1])
        ]

    @failures()
    def launch(self, stage: int, slots: Slots) -> StageOutput:
        """Run stage `stage` over `slots`, padded to whole parts: on a CPU there is nothing to wait for later."""
        part = part_of(bucket_of(self.buckets, len(slots)), self._crew.threads)
        parts = -(-len(slots) // part)
        rows = np.full((parts, part), self.capacity)
        rows.ravel()[: len(slots)] = slots
        score = np.empty((parts, part), dtype=np.float32)
        probabilities = np.empty((parts, part, self.classes), dtype=np.float32)

        def run(number: int) -> None:
            probabilities[number], score[number] = self._run(stage, rows[number])

        self._crew.run(run, parts)
        return StageOutput(score.ravel()[: len(slots)], probabilities.reshape(-1, self.classes)[: len(slots)])

    def _run(self, stage: int, rows: Slots) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A stage over rows of the slabs → probabilities [n, classes], score [n]; on any thread, on rows of its own."""
        inputs: dict[str, NDArray[np.generic]] = {"pixels": self._pixels[rows]}
        if stage:
            inputs["upstream"] = self._features[stage - 1][rows]
        wanted = ["probabilities", "score"] + (["features"] if stage + 1 < self.stages else [])
        probabilities, score, *features = self._sessions[stage].run(wanted, inputs)
        if features:
            self._features[stage][rows] = features[0]
        return probabilities, score


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Parts run beside each other, each on the thread that calls.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
