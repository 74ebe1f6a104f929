"""Whole data sets through a serving backend: what `calibrate` and `evaluate` measure is what serving answers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend


@dataclass(frozen=True)
class Outputs:
    """Every image at every exit: scores [N, K] and probabilities [N, K, classes], float32."""

    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def predictions(self) -> NDArray[np.int64]:
        """The most probable class at every exit, [N, K]."""
        best: NDArray[np.int64] = self.probabilities.argmax(axis=2)
        return best


def run_every_exit(backend: StageBackend, pixels: NDArray[np.uint8]) -> Outputs:
    """Run images uint8 [N, size, size, 3] through all stages, in the backend's largest batches."""
    images = len(pixels)
    scores = np.zeros((images, backend.stages), dtype=np.float32)
    probabilities = np.zeros((images, backend.stages, backend.classes), dtype=np.float32)
    batch = backend.buckets[-1]
    for start in range(0, images, batch):
        rows = slice(start, min(start + batch, images))
        slots = backend.admit(pixels[rows])
        for stage in range(backend.stages):
            output = backend.collect(backend.launch(stage, slots))
            scores[rows, stage], probabilities[rows, stage] = output.score, output.probabilities
        backend.release(slots)
    return Outputs(scores, probabilities)
