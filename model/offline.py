"""Whole data sets through a serving backend, and the images that may calibrate and evaluate.

`calibrate` and `evaluate` measure what serving answers, on images that training held out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend, of_stage
from msmlp.model.data import Dataset, Split
from msmlp.model.data.dataset import Partition, split_digest
from msmlp.model.data.loading import load_dataset, load_held_out
from msmlp.model.errors import DataError, WeightsError
from msmlp.model.imported import ImportedCascade
from msmlp.model.weights import Weights
from msmlp.model.weights.manifest import AnyCascade, cumulative


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

    def correct(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each exit is right about each image, [N, K]."""
        right: NDArray[np.bool_] = self.predictions == labels[:, None]
        return right


def run_every_exit(backend: StageBackend, pixels: NDArray[np.uint8]) -> Outputs:
    """Run images uint8 [N, *image shape] through all stages, in the backend's largest batches."""
    images = len(pixels)
    scores = np.zeros((images, backend.stages), dtype=np.float32)
    probabilities = np.zeros((images, backend.stages, backend.classes), dtype=np.float32)
    batch = backend.buckets[-1]
    for start in range(0, images, batch):
        rows = slice(start, min(start + batch, images))
        slots = backend.admit(pixels[rows])
        for stage in range(backend.stages):
            with of_stage(stage):
                output = backend.collect(backend.launch(stage, slots))
            scores[rows, stage], probabilities[rows, stage] = output.score, output.probabilities
        backend.release(slots)
    return Outputs(scores, probabilities)


BATCH, IMPORTED_GFLOPS = 256, 20.0
"""Images per batch while a data set is measured; for an imported cascade, which may be a hundred times as large as
ours, no more than take this many GFLOPs, but at least 8."""


def batch_of(cascade: AnyCascade) -> int:
    if not isinstance(cascade, ImportedCascade):
        return BATCH
    return int(np.clip(IMPORTED_GFLOPS / cumulative(cascade)[-1], 8, BATCH))


def dataset_for(weights: Weights, data: Path) -> Dataset:
    """The data set at `data`, with images as the weights read them; DataError if it is none."""
    manifest = weights.manifest
    if isinstance(manifest.cascade, ImportedCascade):
        return load_held_out(data, manifest.views, manifest.classes)
    return load_dataset(data, manifest.views)


def validation_images(weights: Weights, dataset: Dataset) -> Split:
    """The validation images of the training, from `dataset`; DataError if they are not the same.

    The weights may have been trained on any others, which would flatter every number.
    """
    held = _held_out(weights, "validation")
    if not {"seed", "images", "digest"} <= held.keys():
        raise WeightsError(f"the manifest of {weights.folder} does not say which images were held out in training")
    return _same("validation", held, _partition(weights, dataset, held["seed"]).validation)


def audit_images(weights: Weights, dataset: Dataset) -> Split | None:
    """The audit images of the training, from `dataset`; None if it had none, DataError if they are not the same."""
    held = _held_out(weights, "audit")
    if held.get("digest") is None:
        return None
    return _same("audit", held, _partition(weights, dataset, held["seed"]).audit)


def _held_out(weights: Weights, name: str) -> dict[str, Any]:
    held = weights.manifest.training.get(name)
    return held if isinstance(held, dict) else {}


def _partition(weights: Weights, dataset: Dataset, seed: int) -> Partition:
    check_classes(weights, dataset)
    return dataset.partition(seed)


def _same(name: str, held: dict[str, Any], found: Split | None) -> Split:
    images, digest = (0, "none") if found is None else (len(found), split_digest(found))
    if found is None or digest != held["digest"]:
        raise DataError(
            f"the {name} images of this data are not those held out in training "
            f"({images} images, digest {digest[:12]}; "
            f"the manifest has {held['images']}, {held['digest'][:12]}): use the data set of the training"
        )
    return found


def check_classes(weights: Weights, dataset: Dataset) -> None:
    """DataError unless the data has the weights' classes, in their order."""
    if dataset.classes != weights.manifest.classes:
        odd = sorted(set(dataset.classes) ^ set(weights.manifest.classes))
        raise DataError(f"the data's classes are not the weights' classes: {', '.join(odd[:5]) or 'another order'}")
