"""`msmlp bench pair`: a cascade against another network, at that one's accuracy, on one device in one run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from msmlp.bench.images import pick_images
from msmlp.bench.offer import named_point
from msmlp.bench.strategies import Saturated
from msmlp.model.backends.protocol import warm_up
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.errors import OptionError
from msmlp.model.weights import Calibration, OperatingPoint, Weights, load_calibration, load_weights

Progress = Callable[[str], None]
Chosen = Literal["named", "as accurate", "less accurate"]
"""How the cascade's point came to be: by name; the cheapest that is as accurate; the best there is, where none is."""


@dataclass(frozen=True)
class PairOptions:
    """What to measure. Without a `policy`, the cheapest operating point that is expected to be as accurate, or the most
    accurate where none is."""

    weights: Path
    against: Path
    data: Path | None = None
    images: int = 2048
    rounds: int = 7
    max_batch: int = 16
    policy: str | None = None
    device: str = "auto"
    dtype: str = "auto"


def bench_pair(options: PairOptions, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Both through the engine at saturation, in turns; ratios are of rounds.

    Raises:
        CallerError: weights, data, policy or device that do not fit.
    """
    mine, its = (load_weights(folder) for folder in (options.weights, options.against))
    size, its_size = mine.manifest.cascade.image_size, its.manifest.cascade.image_size
    if size != its_size:
        raise OptionError("--against", f"{options.against} sees {its_size} pixels, {options.weights} {size}")
    theirs = _most_accurate(load_calibration(its))
    chosen, point = _point(load_calibration(mine), options.policy, theirs)
    images = pick_images(options.data, options.images, size)
    progress("warm-up")
    ours, other = _Served(mine, options), _Served(its, options)
    seconds: list[tuple[float, float]] = []
    rng = np.random.default_rng(0)
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        first = bool(rng.integers(2))
        pair = [served.seconds(images, at) for served, at in ((ours, point), (other, theirs))[:: 1 if first else -1]]
        seconds.append((pair[0], pair[1]) if first else (pair[1], pair[0]))
    return {
        "data": None if options.data is None else options.data.name,
        "images": len(images),
        "rounds": options.rounds,
        "max_batch": options.max_batch,
        "chosen": chosen,
        "device": ours.device,
        "dtype": ours.dtype,
        "torch": torch.__version__,
        "network": ours.document(point, len(images), [a for a, _ in seconds]),
        "against": other.document(theirs, len(images), [b for _, b in seconds]),
        "gflops_saved": theirs.mean_gflops / point.mean_gflops,
        "speedup": statistics.median(b / a for a, b in seconds),
        "speedup_of_rounds": [b / a for a, b in seconds],
    }


class _Served:
    """One network behind its engine."""

    def __init__(self, weights: Weights, options: PairOptions) -> None:
        self.folder, self.calibration = weights.folder, load_calibration(weights)
        settings = BackendSettings(options.device, options.dtype, capacity=options.images, max_batch=options.max_batch)
        backend = select_backend(weights, self.calibration, settings, "torch").build()
        self.device, self.dtype = backend.device, backend.dtype
        self._engine = Saturated(backend, warm_up(backend))

    def seconds(self, images: NDArray[np.uint8], point: OperatingPoint) -> float:
        """One run of all images."""
        start = time.perf_counter()
        self._engine.run(images, np.array(point.thresholds))
        seconds = time.perf_counter() - start
        self._exits = np.bincount(self._engine.exits - 1, minlength=len(point.exit_share))
        return seconds

    def document(self, point: OperatingPoint, images: int, seconds: list[float]) -> dict[str, Any]:
        """What it did."""
        return {
            "weights": str(self.folder),
            "policy": point.name,
            "expected_accuracy": point.expected_accuracy,
            "standard_error": point.standard_error,
            "validation_images": self.calibration.file.images,
            "mean_gflops": point.mean_gflops,
            "exit_share": (self._exits / images).round(4).tolist(),
            "images_per_second": images / statistics.median(seconds),
        }


def _most_accurate(calibration: Calibration) -> OperatingPoint:
    return max(calibration.points, key=lambda point: (point.expected_accuracy, -point.mean_gflops))


def _point(calibration: Calibration, policy: str | None, other: OperatingPoint) -> tuple[Chosen, OperatingPoint]:
    if policy is not None:
        return "named", named_point(calibration.points, policy)
    enough = [point for point in calibration.points if point.expected_accuracy >= other.expected_accuracy]
    if not enough:
        return "less accurate", _most_accurate(calibration)
    return "as accurate", min(enough, key=lambda point: point.mean_gflops)


def pair_lines(result: dict[str, Any]) -> list[str]:
    """The document, for people."""
    rows = [
        f"{row['weights']} at {row['policy']}: {row['images_per_second']:.0f} images/s, {row['mean_gflops']:.4f} "
        f"GFLOPs an image, {100 * row['expected_accuracy']:.2f} % expected (of {row['validation_images']} images)"
        for row in (result["network"], result["against"])
    ]
    less = ["no point is expected to be as accurate: this is the best"] if result["chosen"] == "less accurate" else []
    return [
        *less,
        f"{result['images']} images in batches of at most {result['max_batch']} on {result['device']}, "
        f"{result['rounds']} rounds",
        *rows,
        f"{result['gflops_saved']:.2f} times fewer multiply-adds, {result['speedup']:.2f} times the images/s",
    ]
