"""torch against ONNX Runtime on this machine's CPU, in one run.

python -m benchmarks.backends --data .data/cifar-10-batches-py > docs/results/backends.json
python -m benchmarks.backends.page > benchmarks/backends.md
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.backends.agreement import agreement
from benchmarks.backends.services import started
from benchmarks.backends.stages import BUCKETS, stage_times
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.data import load_dataset
from msmlp.model.evaluate import split_images
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import Calibration, Weights, load_calibration, load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS

CHOICES = {
    "torch": {"backend": "torch", "dtype": "float32"},
    "onnx": {"backend": "onnx", "dtype": "float32"},
    "onnx-int8": {"backend": "onnx", "dtype": "int8"},
}
PICTURE = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
POINT = "balanced"


def main() -> None:
    """Measure and print."""
    options = _options()
    weights = load_weights(options.weights)
    calibration = load_calibration(weights)
    images = split_images(weights, load_dataset(options.data, weights.manifest.cascade.image_size), "test")
    _say("services")
    picture = PICTURE.read_bytes()
    services = {name: started(options.weights, choice, picture, options.starts) for name, choice in CHOICES.items()}
    _say("stages")
    backends = {name: _built(weights, calibration, choice) for name, choice in CHOICES.items()}
    times = stage_times(backends, images.pixels, options.rounds)
    _say("answers")
    outputs = {name: run_every_exit(backend, images.pixels) for name, backend in backends.items()}
    point = next(each for each in calibration.points if each.name == POINT)
    document: dict[str, Any] = {
        "command": f"python -m benchmarks.backends {' '.join(sys.argv[1:])}",
        "weights": weights.manifest.name,
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "rounds": options.rounds,
        "starts": options.starts,
        "stages": times,
        "services": services,
        "point": POINT,
        "answers": agreement(outputs, images, point.thresholds),
    }
    print(json.dumps(document, indent=1))


def _built(weights: Weights, calibration: Calibration, choice: dict[str, str]) -> StageBackend:
    largest = BUCKETS[-1]
    settings = BackendSettings("cpu", choice.get("dtype", "auto"), capacity=largest, max_batch=largest)
    return select_backend(weights, calibration, settings, choice["backend"]).build()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--data", type=Path, required=True, help="its test images are used")
    parser.add_argument("--rounds", type=int, default=25, help="interleaved; medians are reported")
    parser.add_argument("--starts", type=int, default=3, help="of each service")
    return parser.parse_args()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    main()
