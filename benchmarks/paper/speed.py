"""Table 2: images/s of the cascade and of the Mixer at equal accuracy, in alternation on this machine."""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.backends import processor
from benchmarks.paper.curve import reaching
from benchmarks.paper.measure import Result
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.exits.rule import leaves
from msmlp.model.weights import load_calibration, load_weights

BATCH = 16


def compare(
    folders: Sequence[Path], results: Sequence[Result], pixels: NDArray[np.uint8], rounds: int, device: str
) -> dict[str, Any]:
    """Table 2 of a cascade and a Mixer, from passes over images [N, size, size, 3]; lists have the cascade first.

    The cascade's thresholds are the cheapest that reach the Mixer's accuracy on the validation images.
    """
    costs = load_weights(folders[0]).manifest.gflops_cumulative
    wanted, reached = (float(each.correct[:, -1].mean()) for each in (results[1].validation, results[1].test))
    setting = reaching(results[0].validation.table(costs), wanted)
    cascade = results[0].test.table(costs).expect(setting.thresholds)
    backends, thresholds = [_backend(folder, device) for folder in folders], (setting.thresholds, ())
    speeds: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            one_pass(backends[which], pixels, thresholds[which])
            speeds[which].append(len(pixels) / (time.perf_counter() - start))
    ours, theirs = (each[1:] for each in speeds)  # the first round does not count
    return {
        "thresholds": setting.thresholds,
        "validation": [setting.accuracy, wanted, len(results[1].validation.labels)],
        "test": [cascade.accuracy, reached, len(results[1].test.labels)],
        "exit_share": cascade.exit_share,
        "images_per_second": [statistics.median(ours), statistics.median(theirs)],
        "ratios": sorted(a / b for a, b in zip(ours, theirs, strict=True)),
        "images": len(pixels),
        "backend": f"{backends[0].name}, {backends[0].device}, {backends[0].dtype}",
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}",
    }


def one_pass(backend: StageBackend, pixels: NDArray[np.uint8], thresholds: Sequence[float]) -> list[int]:
    """All images in batches of BATCH, which shrink as images leave → how many reached each stage.

    Survivors of several batches are not merged, as the service would do.
    """
    reached = [0] * backend.stages
    for start in range(0, len(pixels), BATCH):
        slots = staying = backend.admit(pixels[start : start + BATCH])
        for stage in range(backend.stages):
            reached[stage] += len(staying)
            output = backend.collect(backend.launch(stage, staying))
            if stage < len(thresholds):
                staying = staying[~leaves(output.score, thresholds[stage])]
            if not len(staying):
                break
        backend.release(slots)
    return reached


def _backend(folder: Path, device: str) -> StageBackend:
    weights = load_weights(folder)
    settings = BackendSettings(device=device, capacity=BATCH, max_batch=BATCH)
    return select_backend(weights, load_calibration(weights), settings).build()
