"""A finished run: every exit on the validation and the test images, measured once and kept beside the weights."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.plan import Run, Scale, command, plan
from msmlp.model.evaluate import measure
from msmlp.model.training.recipes import TrainOptions
from msmlp.model.weights.calibration import Table
from msmlp.model.weights.files import write_atomically

OUTPUTS = "outputs.npz"
KEPT = ("device", "dtype", "torch", "git_commit", "images_per_second", "images")
"""Of the manifest's `training`."""


@dataclass(frozen=True)
class Answers:
    """N images at K exits: confidences [N, K], whether each answer is right [N, K], and labels [N]."""

    scores: NDArray[np.float32]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64]

    def table(self, costs: list[float]) -> Table:
        return Table(self.scores, self.correct, np.array(costs))


@dataclass(frozen=True)
class Result:
    """What a finished run answered, and `about` it: its command, speed and circumstances."""

    validation: Answers
    test: Answers
    about: dict[str, Any]


def measure_run(options: TrainOptions) -> Result:
    """Measure a trained run and keep it: the only time that the tables look at its test images."""
    arrays: dict[str, Any] = {}
    for split in ("val", "test"):
        measured = measure(options.out, options.data, split, options.device, "float32")
        arrays[f"{split}_probabilities"] = measured.outputs.probabilities.astype(np.float16)  # for whoever wants more
        arrays[f"{split}_scores"], arrays[f"{split}_correct"] = measured.outputs.scores, measured.correct
        arrays[f"{split}_labels"] = measured.images.labels.astype(np.int16)
    training = measured.weights.manifest.training
    about = {"command": command(options), "classes": measured.classes, **{name: training[name] for name in KEPT}}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(json.dumps(about)), **arrays)
    write_atomically(options.out / OUTPUTS, buffer.getvalue())
    return load_result(options.out)


def load_result(folder: Path) -> Result:
    with np.load(folder / OUTPUTS) as kept:
        validation, test = (
            Answers(*(kept[f"{split}_{name}"] for name in ("scores", "correct", "labels"))) for split in ("val", "test")
        )
        return Result(validation, test, json.loads(str(kept["about"])))


def load_results(scale: Scale, out: Path) -> dict[Run, Result]:
    """Of all finished runs."""
    return {run: load_result(out / run.name) for run in plan(scale) if (out / run.name / OUTPUTS).exists()}
