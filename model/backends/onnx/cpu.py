"""Work in equal parts, beside each other on all cores.

A batch of the networks here is better cut by images than by operations: threads inside operations meet at the end of
each of a hundred, and whoever has lost its core for a moment keeps all others waiting there. Parts meet once, and
whoever is free takes the next. A small part also stays in a core's cache, where a whole batch does not.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from msmlp.model.backends.onnx.slots import OnnxSlots, features_dtype
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.platform.cores import cores
from msmlp.model.platform.memory import failures, free_host_memory

SMALL, LARGE = 4, 8
"""Images of a part: fewer cost more an image, as does a batch of 64 (docs/backends.md has the times)."""

FEW = 4
"""So many small parts at least may run beside each other; a batch of more images is cut into large ones."""


def part_of(bucket: int, threads: int) -> int:
    """Images of every part of a bucket: all parts are alike, so that an image's place changes no bit."""
    return min(bucket, SMALL if bucket <= SMALL * max(FEW, threads) else LARGE)


class Crew:
    """As many threads as the process has cores, the caller's own among them."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` of all, the caller's included; without it as many as there are cores."""
        self.threads = threads or cores()
        others = self.threads - 1
        self._pool = ThreadPoolExecutor(others, thread_name_prefix="msmlp-stage") if others else None

    def run(self, work: Callable[[int], None], parts: int) -> None:
        """`work(0)` to `work(parts - 1)`, each once; raises what the first to fail raised, when all have ended."""
        numbers = iter(range(parts))
        helpers = min(self.threads, parts) - 1
        helping = [self._pool.submit(_take, work, numbers) for _ in range(helpers) if self._pool]
        try:
            _take(work, numbers)
        finally:
            failures = [each.exception() for each in helping]
        for failure in failures:
            if failure is not None:
                raise failure


def _take(work: Callable[[int], None], numbers: Iterator[int]) -> None:
    for number in numbers:  # a range's iterator gives every number to one thread only
        work(number)


# FROM model/backends/onnx/cpu.py:
# The ONNX Runtime backend of a CPU: slabs are numpy arrays, one session a stage, batches cut into parts (parts.py).


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
