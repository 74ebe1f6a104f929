"""`msmlp bench engine` on presets that nobody has trained: what they cost does not depend on their weights.

    python -m benchmarks.untrained paper-s mixer-s --device cuda

Of the images at an exit half leave there, as far as there are later ones. Prints a JSON line per preset as it ends.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from msmlp.bench.engine import BenchOptions, bench_engine
from msmlp.bench.images import pick_images
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import PRESETS
from msmlp.model.offline import run_every_exit
from msmlp.model.preprocess import Preprocess
from msmlp.model.weights import Weights, load_weights, write_calibration, write_weights
from msmlp.model.weights.calibration import CalibrationFile, OperatingPoint, Table
from msmlp.service.settings import load_settings

POINT = "balanced"
CALIBRATED_ON = 256
"""The most images that set the thresholds."""


def write_untrained(preset: str, folder: Path, device: str, images: int = CALIBRATED_ON) -> Weights:
    """The weights of a preset as training begins, with the one operating point POINT."""
    torch.manual_seed(0)
    config = PRESETS[preset]
    folder.mkdir(parents=True)
    write_weights(
        folder,
        config=config,
        state=Cascade(config).state_dict(),
        classes=tuple(map(str, range(config.classes))),
        preprocess=Preprocess(size=config.image_size, mean=(0.5,) * 3, std=(0.25,) * 3),
        training={},
        results=[],
    )
    weights = load_weights(folder)
    _calibrate(weights, device, min(images, CALIBRATED_ON))
    return weights


def _calibrate(weights: Weights, device: str, images: int) -> None:
    backend = StagedBackend(weights, BackendSettings(device, capacity=images))
    scores = run_every_exit(backend, pick_images(None, images, weights.manifest.views)).scores
    thresholds, here = [], np.ones(len(scores), dtype=bool)
    for k in range(backend.stages - 1):
        thresholds.append(float(np.median(scores[here, k])))
        here &= scores[:, k] < thresholds[-1]
    correct = np.zeros(scores.shape, dtype=np.bool_)  # they know nothing
    expected = Table(scores, correct, np.array(weights.manifest.gflops_cumulative)).expect(thresholds)
    point = OperatingPoint(
        name=POINT,
        thresholds=tuple(thresholds),
        expected_accuracy=expected.accuracy,
        standard_error=expected.standard_error,
        mean_gflops=expected.mean_cost,
        exit_share=expected.exit_share,
        solver="median",
    )
    file = CalibrationFile(
        format=1,
        model_sha256=weights.sha256,
        exit_policy="max-probability",
        temperatures=(1.0,) * backend.stages,
        operating_points=(point,),
        images=len(scores),
        digest="",
        device=backend.device,
        dtype=backend.dtype,
        files={},
    )
    write_calibration(weights.folder, file, scores, correct)


def main() -> None:
    options = _options()
    for preset in options.presets:
        with tempfile.TemporaryDirectory() as scratch:
            weights = write_untrained(preset, Path(scratch) / preset, options.device, options.images)
            settings = load_settings(weights=weights.folder, policy=POINT, backend="torch", device=options.device)
            caps = tuple(map(int, options.max_batch.split(",")))
            wanted = BenchOptions(settings, None, options.images, options.rounds, caps, options.load_seconds)
            result = bench_engine(wanted, lambda line: print(line, file=sys.stderr))
        print(json.dumps({**result, "weights": f"untrained {preset}"}), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", choices=sorted(PRESETS), metavar="PRESET")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batch", default="16,64,256")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
