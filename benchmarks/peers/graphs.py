"""What every peer runs: pixels from bytes, and the exported graphs, stage by stage over whoever is left.

The peers' environment has no msmlp: numpy, Pillow and ONNX Runtime are all that is imported.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Read when ONNX Runtime is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

Pixels = NDArray[np.uint8]
Answer = dict[str, Any]


def decode(data: bytes, size: int) -> Pixels:
    """An encoded image → uint8 [size, size, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image if image.size == (size, size) else image.resize((size, size)))


class Graphs:
    """The stages of a weights folder; images leave at stage k with a score of thresholds[k] or more."""

    def __init__(self, folder: Path, thresholds: list[float], threads: int, spinning: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self._thresholds = thresholds
        self._sessions = [
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in sorted(folder.glob("stage-*.onnx"))
        ]
        self.size = int(self._sessions[0].get_inputs()[0].shape[1])

    def classify(self, pixels: Pixels) -> list[Answer]:
        """Images [n, size, size, 3] → class, confidence and exit of each."""
        if len(self._sessions) == 1:
            (probabilities,) = self._sessions[0].run(["probabilities"], {"pixels": pixels})
            return _answers(probabilities, np.ones(len(pixels), dtype=int))
        wanted = ["features", "probabilities", "score"]
        features, probabilities, score = self._sessions[0].run(wanted, {"pixels": pixels})
        exits, rest = np.ones(len(pixels), dtype=int), np.arange(len(pixels))
        for k, threshold in enumerate(self._thresholds, 1):
            on = score < threshold
            if not on.any():
                break
            rest, last = rest[on], k == len(self._thresholds)
            inputs = {"pixels": pixels[rest], "upstream": features[on]}
            # The last stage's features are nobody's.
            *more, answers, score = self._sessions[k].run(wanted[1:] if last else wanted, inputs)
            features = more[0] if more else features
            probabilities[rest], exits[rest] = answers, k + 1
        return _answers(probabilities, exits)


def _answers(probabilities: NDArray[np.float32], exits: NDArray[np.int_]) -> list[Answer]:
    classes, confidences = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
    return [
        {"class_id": class_id, "confidence": confidence, "exit": exit}
        for class_id, confidence, exit in zip(classes, confidences, exits.tolist(), strict=True)
    ]
