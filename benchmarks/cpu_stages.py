"""Stage times on a CPU: the torch backend, the plain modules and ONNX Runtime, interleaved in one process.

python -m benchmarks.cpu_stages weights/cifar10-xs --data PATH
taskset -c 0 python -m benchmarks.cpu_stages weights/cifar10-xs --json    # one core for all three
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.backends.choose import choose_backend
from model.backends.protocol import StageBackend
from model.export import export
from model.served import ServedStage, served_stages
from model.weights import load_calibration, load_weights
from msmlp.bench.images import pick_images

Pixels = NDArray[np.uint8]
Run = Callable[[Pixels], list[float]]
"""Runs all stages over one batch → seconds of each."""


def through(backend: StageBackend, pixels: Pixels) -> list[float]:
    """With gather, scatter and answers on the host."""
    slots, seconds = backend.admit(pixels), []
    for stage in range(backend.stages):
        start = time.perf_counter()
        backend.collect(backend.launch(stage, slots))
        seconds.append(time.perf_counter() - start)
    backend.release(slots)
    return seconds


@torch.inference_mode()
def plain(stages: list[ServedStage], pixels: Pixels) -> list[float]:
    """Modules on contiguous tensors: nothing is gathered or scattered."""
    images, upstream, seconds = torch.from_numpy(pixels), None, []
    for stage in stages:
        start = time.perf_counter()
        upstream, _probabilities, _score = stage(images, upstream)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(runs: dict[str, Run], images: Pixels, rounds: int) -> dict[str, list[float]]:
    """Every run in turn, `rounds` times after two that do not count → median milliseconds of each stage."""
    samples: dict[str, list[list[float]]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            seconds = run(images)
            if number >= 2:
                samples[name].append(seconds)
    return {name: np.round(1e3 * np.median(each, axis=0), 3).tolist() for name, each in samples.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, help="images to run; noise without")
    parser.add_argument("--buckets", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(options.weights, Path(folder) / options.weights.name))
        export(copy)
        weights = load_weights(copy)
        calibration = load_calibration(weights)
        largest = max(options.buckets)
        ours, theirs = (
            choose_backend(weights, calibration, backend=name, device="cpu", capacity=largest, max_batch=largest)()
            for name in ("torch", "onnx")
        )
    stages = served_stages(weights, calibration.file.temperatures)
    runs: dict[str, Run] = {
        "backend": lambda images: through(ours, images),
        "plain": lambda images: plain(stages, images),
        "onnx": lambda images: through(theirs, images),
    }
    images = pick_images(options.data, largest, weights.manifest.cascade.image_size)
    rows = [{"bucket": b, **measure(runs, images[:b], options.rounds)} for b in options.buckets]
    if options.json:
        print(json.dumps({"torch_threads": torch.get_num_threads(), "ms": rows}))
        return
    print(f"torch threads: {torch.get_num_threads()}; milliseconds a batch, stage by stage")
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep="   ")


if __name__ == "__main__":
    main()
