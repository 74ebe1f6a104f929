"""The ONNX Runtime backend, on a CPU: slabs are numpy arrays, one session a stage."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.backends.memory import failures
from model.backends.protocol import Slots, StageOutput, bucket_of, buckets_up_to, check_pixels
from model.backends.slots import SlotPool
from model.config import CascadeConfig

# Read when ONNX Runtime is imported, which would else send usage events and write a device id for them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class OnnxBackend:
    """Exported stages (model/export.py). One row more than the capacity: padding reads and writes there."""

    name, device, dtype, in_flight = "onnx", "cpu", "float32", 1

    def __init__(
        self, cascade: CascadeConfig, graphs: Sequence[bytes], *, capacity: int = 1024, max_batch: int = 64
    ) -> None:
        """Build the sessions and the slabs.

        Args:
            cascade: what the graphs were exported from.
            graphs: one a stage (model/weights/graphs.py).
            capacity: slots.
            max_batch: the largest batch.
        """
        self.stages, self.classes, self.size = len(cascade.stages), cascade.classes, cascade.image_size
        self.capacity, self.buckets = capacity, buckets_up_to(min(max_batch, capacity))
        self._sessions = [_session(graph) for graph in graphs]
        names = [{each.name for each in session.get_inputs()} for session in self._sessions]
        self._reads_previous = ["previous" in each for each in names]
        # What the exit before answered, for stages whose policy reads it.
        self._previous = [
            np.zeros((capacity + 1 if reads else 0, self.classes), dtype=np.float32) for reads in self._reads_previous
        ]
        self._pool = SlotPool(capacity)
        self._pixels = np.zeros((capacity + 1, self.size, self.size, 3), dtype=np.uint8)
        self._features = [
            np.zeros((capacity + 1, cascade.tokens(k), stage.width), dtype=np.float32)
            for k, stage in enumerate(cascade.stages[:-1])
        ]

    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images [n, size, size, 3] → slots [n]."""
        check_pixels(pixels, self.size)
        with self._pool.taking(len(pixels)) as slots:
            self._pixels[slots] = pixels
        return slots

    @failures()
    def launch(self, stage: int, slots: Slots) -> StageOutput:
        """Run stage `stage` over `slots`, padded to the bucket: on a CPU there is nothing to wait for later."""
        rows = np.full(bucket_of(self.buckets, len(slots)), self.capacity)
        rows[: len(slots)] = slots
        inputs = {"pixels": self._pixels[rows]}
        if stage:
            inputs["upstream"] = self._features[stage - 1][rows]
        if self._reads_previous[stage]:
            inputs["previous"] = self._previous[stage][rows]
        wanted = ["probabilities", "score"] + (["features"] if stage + 1 < self.stages else [])
        probabilities, score, *features = self._sessions[stage].run(wanted, inputs)
        if features:
            self._features[stage][rows] = features[0]
            if self._reads_previous[stage + 1]:
                self._previous[stage + 1][rows] = probabilities
        return StageOutput(score[: len(slots)], probabilities[: len(slots)])

    def collect(self, handle: StageOutput) -> StageOutput:
        """The batch's answers."""
        return handle

    def release(self, slots: Slots) -> None:
        """Give slots back."""
        self._pool.give(slots)


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    # Each session has threads of its own and they run in turn: one that is idle must not spin beside another's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _threads() -> int:
    """One fewer than the cores this process may use, as for torch (threads.py)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)
