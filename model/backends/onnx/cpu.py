"""The ONNX Runtime backend of a CPU: slabs are numpy arrays, and a batch runs in equal parts, which cores may share.

Splitting a batch of small networks by images beats splitting its operations: threads within operations meet at the end
of each of a hundred, and a thread that has lost its core for a moment delays all others every time. Parts meet once per
batch, and a free thread takes the next one. A small part also stays in a core's cache, where a whole batch does not.
In a large network each image is a part by itself (LONG_MS), and idle cores help inside its operations (INSIDE_MS).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.onnx.base import CPU, OnnxSlots, features_dtype, open_sessions
from msmlp.model.backends.protocol import Slots, StageOutput, bucket_of, device_errors
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.platform import cores, free_host_memory
from msmlp.model.shape import CascadeShape

SMALL, LARGE = 4, 8
"""Images per part: fewer cost more per image, as does a batch of 64 (docs/backends.md has the times)."""

LONG_MS = 1.0
"""Where a stage takes longer per image, each image is a part by itself if threads share the batch: batching would gain
next to nothing, and a batch of 2 to 7 in one part would leave the other cores idle."""

INSIDE_MS = 10.0
"""For a stage that takes even longer, ONNX Runtime starts as many threads again if no other backend shares the machine:
they help inside its operations when there are fewer images than cores."""

WORTH_SHARING = 32
"""The smallest batch for which a process takes other cores where each has a process of its own. A smaller one only
gets in their way; a request of many images may find them idle."""


def buckets_of(largest: int) -> tuple[int, ...]:
    """1 to 8, then steps of a quarter at most (10, 12, 14, 16, 20, ...): a CPU pays for every padded image."""
    sizes, size = {largest}, 1
    while size < largest:
        sizes.add(size)
        size += max(1, 2 ** (size.bit_length() - 3))
    return tuple(sorted(sizes))


@cache
def part_of(bucket: int, threads: int, *, long: bool = False) -> int:
    """Images per part of a bucket; `long`: the stage takes over LONG_MS an image. All parts have one size, so that an
    image's place changes no bit of its answer."""
    if long and threads > 1:
        return 1
    parts = -(-bucket // LARGE)
    together = min(threads, max(1, bucket // SMALL))
    parts = -(-parts // together) * together
    return -(-bucket // parts)


class WorkerPool:
    """One thread per core of the process, counting the caller's own."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` counts the caller's; None takes one per core."""
        self.threads = threads or cores()
        others = self.threads - 1
        self._pool = ThreadPoolExecutor(others, thread_name_prefix="msmlp-stage") if others else None

    def run(self, work: Callable[[int], None], parts: int) -> None:
        """Call `work(0)` to `work(parts - 1)`, each once, and raise the first error after all threads have ended."""
        numbers = iter(range(parts))
        helpers = min(self.threads, parts) - 1
        helping = [self._pool.submit(_take, work, numbers) for _ in range(helpers) if self._pool]
        try:
            _take(work, numbers)
        finally:
            errors = [each.exception() for each in helping]
        for error in errors:
            if error is not None:
                raise error


def _take(work: Callable[[int], None], numbers: Iterator[int]) -> None:
    for number in numbers:  # a range's iterator gives each number to one thread only
        work(number)


class OnnxBackend(OnnxSlots):
    device = "cpu"

    def __init__(
        self,
        shape: CascadeShape,
        graphs: Sequence[bytes],
        settings: BackendSettings,
        *,
        stage_ms: Sequence[float] | None = None,
    ) -> None:
        """Build the sessions and the slabs for `graphs`, one per stage, whose dtype is that of `settings`.

        `stage_ms` [K] is what a calibration measured of each stage: the milliseconds per image on one core.
        """
        super().__init__(shape, settings, free_host_memory)
        self.buckets = buckets_of(settings.largest_batch)
        self._workers = WorkerPool(settings.threads)
        times = stage_ms or [0.0] * shape.stages
        self._long = [ms > LONG_MS for ms in times]
        self._shares_from = 1 if settings.alone else WORTH_SHARING
        inside = [self._workers.threads if settings.alone and ms > INSIDE_MS else 1 for ms in times]
        self._sessions = [each.session for each in open_sessions(graphs, CPU, threads=inside)]
        self._features = [
            None if each is None else np.zeros((self.capacity + 1, *each), dtype=features_dtype(self.dtype))
            for each in shape.features
        ]

    @device_errors()
    def launch(self, stage: int, slots: Slots) -> StageOutput:
        """Run stage `stage` over `slots`, padded to whole parts: on a CPU there is nothing to wait for later."""
        bucket = bucket_of(self.buckets, len(slots))
        threads = self._workers.threads if bucket >= self._shares_from else 1
        part = part_of(bucket, threads, long=self._long[stage])
        if part == len(slots):
            probabilities, score = self._run(stage, slots)
            return StageOutput(score, probabilities)
        parts = -(-len(slots) // part)
        rows = np.full((parts, part), self.capacity)
        rows.ravel()[: len(slots)] = slots
        score = np.empty((parts, part), dtype=np.float32)
        probabilities = np.empty((parts, part, self.classes), dtype=np.float32)

        def run(number: int) -> None:
            probabilities[number], score[number] = self._run(stage, rows[number])

        if threads == 1:
            _take(run, iter(range(parts)))
        else:
            self._workers.run(run, parts)
        return StageOutput(score.ravel()[: len(slots)], probabilities.reshape(-1, self.classes)[: len(slots)])

    def _run(self, stage: int, rows: Slots) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A stage over rows of the slabs → probabilities [n, classes], score [n]; threads share no row."""
        # `take` is several times faster than indexing, for few rows.
        inputs: dict[str, NDArray[np.generic]] = {}
        if (view := self._shape.reads[stage]) is not None:
            inputs["pixels"] = self._views[view].take(rows, axis=0)
        if stage and (upstream := self._features[stage - 1]) is not None:
            inputs["upstream"] = upstream.take(rows, axis=0)
        slab = self._features[stage]
        if slab is None:
            probabilities, score = self._sessions[stage].run(["probabilities", "score"], inputs)
            return probabilities, score
        probabilities, score, features = self._sessions[stage].run(["probabilities", "score", "features"], inputs)
        if len(rows) == 1:
            slab[rows.item()] = features[0]
        else:
            slab[rows] = features
        return probabilities, score
