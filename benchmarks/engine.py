"""The engine against the same network run whole, interleaved in one run: `make bench`.

    python -m benchmarks.engine --weights weights/cifar10-xs [--data DATA] [--json]

Without --data the images are squares cut from scikit-image's photographs: real pixels, but not the classes trained on,
so exits fire as they do there. Rows: `full`, every image through all stages in the backend's largest batches; `engine`,
scheduler and backend at saturation with the default operating point; `forced`, the same engine with every exit shut.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.backends.protocol import warm_up
from model.backends.torch import TorchBackend
from model.datasets import load_dataset
from model.offline import run_every_exit
from model.weights import load_calibration, load_weights
from service.engine.loop import Loop
from service.engine.messages import Answers, Failed, Outbound, Submit, Terms

REQUEST = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/cifar10-xs"))
    parser.add_argument("--data", type=Path, help="a data set; its test images are used")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--policy", default="balanced")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    for name in ("full", "forced", "engine"):
        sys.stdout.write(f"{name:8} {result[name + '_images_per_second']:9.1f} images/s\n")
    sys.stdout.write(f"engine / full = {result['engine_over_full']:.2f}, exit shares {result['exit_share']}\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds of the three → medians and ratios."""
    weights = load_weights(options.weights)
    calibration = load_calibration(weights)
    point = next(p for p in calibration.points if p.name == options.policy)
    images = pick_images(options, weights.manifest.cascade.image_size)
    backend = TorchBackend(
        weights,
        temperatures=calibration.file.temperatures,
        device=options.device,
        capacity=len(images),
        max_batch=options.max_batch,
    )
    warm_up(backend)
    engine = Saturated(backend)
    shut = (1.0,) * len(point.thresholds)
    speeds: dict[str, list[float]] = {"full": [], "forced": [], "engine": []}
    exits = np.zeros(0, dtype=np.int64)
    for _ in range(options.rounds):
        speeds["full"].append(_timed(lambda: run_every_exit(backend, images), len(images)))
        speeds["forced"].append(_timed(lambda: engine.run(images, shut), len(images)))
        start = time.perf_counter()
        exits = engine.run(images, point.thresholds)
        speeds["engine"].append(len(images) / (time.perf_counter() - start))
    medians = {f"{name}_images_per_second": statistics.median(values) for name, values in speeds.items()}
    ratios = [e / f for e, f in zip(speeds["engine"], speeds["full"], strict=True)]
    return {
        "weights": str(options.weights),
        "images": len(images),
        "rounds": options.rounds,
        "device": backend.device,
        "policy": point.name,
        **medians,
        "engine_over_full": statistics.median(ratios),
        "exit_share": (np.bincount(exits - 1, minlength=backend.stages) / len(exits)).round(4).tolist(),
    }


class Saturated:
    """Scheduler and backend, handed everything at once, on the calling thread.

    The worker's own thread is left out on purpose: torch on two threads of one process means two OpenMP teams that
    compete, and the rows would not be comparable.
    """

    def __init__(self, backend: TorchBackend) -> None:
        self._landed: list[Outbound] = []
        self._loop = Loop(backend, self._landed.append)
        self._request = 0

    def run(self, images: NDArray[np.uint8], thresholds: tuple[float, ...]) -> NDArray[np.int64]:
        """All images in requests of REQUEST → the exits they left at, in the order they landed."""
        self._landed.clear()
        terms = Terms(np.array(thresholds, dtype=np.float64), 1, len(thresholds) + 1)
        for start in range(0, len(images), REQUEST):
            part = images[start : start + REQUEST]
            self._loop.receive(Submit(self._request, part, terms, time.monotonic()))
            self._request += 1
        while self._loop.scheduler.waiting().any():
            self._loop.run_once()
        failed = [message.detail for message in self._landed if isinstance(message, Failed)]
        if failed:
            raise RuntimeError(failed[0])
        return np.concatenate([message.exit for message in self._landed if isinstance(message, Answers)])


def pick_images(options: argparse.Namespace, size: int) -> NDArray[np.uint8]:
    """Test images of --data, or squares of scikit-image's photographs."""
    if options.data is not None:
        test = load_dataset(options.data, size).test
        if test is None:
            raise SystemExit(f"{options.data} has no test split")
        return test.pixels[: options.images]
    from PIL import Image
    from skimage import data

    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(p) for p in (data.cat(), data.astronaut(), data.coffee(), data.rocket())]
    squares = []
    for i in range(options.images):
        photograph = photographs[i % len(photographs)]
        side = int(rng.integers(64, min(photograph.size)))
        x, y = (int(rng.integers(0, full - side + 1)) for full in photograph.size)
        squares.append(np.asarray(photograph.crop((x, y, x + side, y + side)).resize((size, size))))
    return np.stack(squares)


def _timed(run: Any, images: int) -> float:
    start = time.perf_counter()
    run()
    return images / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
