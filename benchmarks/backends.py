"""torch against ONNX Runtime on this machine's CPU, in one run.

    python -m benchmarks.backends --data .data/cifar-10-batches-py

Prints one JSON document: milliseconds of every stage in every bucket, the backends taking turns in one process; time to
start and memory of `msmlp serve` with each backend; and how closely the answers agree with torch in float32.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from msmlp.bench.http import SERVE
from msmlp.bench.processes import family, server_process
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.data import Split, load_dataset
from msmlp.model.evaluate import split_images
from msmlp.model.exits.rule import exit_of
from msmlp.model.offline import Outputs, run_every_exit
from msmlp.model.weights import Calibration, Weights, load_calibration, load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS

CHOICES = {
    "torch": {"backend": "torch", "dtype": "float32"},
    "onnx": {"backend": "onnx", "dtype": "float32"},
    "onnx-int8": {"backend": "onnx", "dtype": "int8"},
}
PICTURE = Path(__file__).resolve().parents[1] / "examples" / "cat.jpg"
POINT = "balanced"
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNCOUNTED = 2
"""Warm-up rounds, which allocate memory and start threads."""
REQUESTS, IMAGES = 50, 64
"""Requests to each service, and images per request, before its memory is measured again."""


def main() -> None:
    options = _options()
    weights = load_weights(options.weights)
    calibration = load_calibration(weights)
    images = split_images(weights, load_dataset(options.data, weights.manifest.views), "test")
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
        "machine": processor(),
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


def stage_times(
    backends: Mapping[str, StageBackend], images: NDArray[np.uint8], rounds: int, buckets: tuple[int, ...] = BUCKETS
) -> list[dict[str, Any]]:
    """One row per bucket: `bucket`, and for each backend the median milliseconds of every stage, [K].

    Includes gather, scatter and answers on the host; `images` [N, H, W, 3] must fill the largest bucket.
    """
    rows = []
    for bucket in buckets:
        samples: dict[str, list[list[float]]] = {name: [] for name in backends}
        for number in range(rounds + UNCOUNTED):
            for name, backend in backends.items():
                seconds = _through(backend, images[:bucket])
                if number >= UNCOUNTED:
                    samples[name].append(seconds)
        medians = {name: np.round(1e3 * np.median(each, axis=0), 3).tolist() for name, each in samples.items()}
        rows.append({"bucket": bucket, **medians})
    return rows


def _through(backend: StageBackend, pixels: NDArray[np.uint8]) -> list[float]:
    slots, seconds = backend.admit(pixels), []
    for stage in range(backend.stages):
        start = time.perf_counter()
        backend.collect(backend.launch(stage, slots))
        seconds.append(time.perf_counter() - start)
    backend.release(slots)
    return seconds


def started(weights: Path, choice: dict[str, str], picture: bytes, rounds: int) -> dict[str, Any]:
    """Median seconds from the start of the process to ready, and MiB that it and its children hold then and later.

    Args:
        weights: the weights folder.
        choice: options of `msmlp serve`.
        picture: an encoded image.
        rounds: how many starts.
    """
    options = [f"--{name}={value}" for name, value in {"weights": str(weights), "port": "0", **choice}.items()]
    seen = [_start(options, picture) for _ in range(rounds)]
    return {name: round(statistics.median(each[name] for each in seen), 2) for name in seen[0]}


def _start(options: list[str], picture: bytes) -> dict[str, float]:
    start = time.monotonic()
    with server_process("serve", ["-c", SERVE, "serve", *options], lambda line: None) as server:
        ready = time.monotonic() - start
        assert server.process is not None
        at_ready = _memory(server.process)
        with httpx.Client(timeout=60) as client:
            for _ in range(REQUESTS):
                files = [("images", picture)] * IMAGES
                client.post(f"{server.url}/classify", files=files, params={"policy": "accurate"}).raise_for_status()
        return {"ready_seconds": ready, "mib_ready": at_ready, "mib_after": _memory(server.process)}


def _memory(process: int) -> float:
    """MiB of a process and its children; what they share counts once (PSS)."""
    kilobytes = 0
    for pid in family(process):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kilobytes += sum(int(number) for number in re.findall(r"^Pss: +(\d+) kB", rollup, flags=re.MULTILINE))
    return kilobytes / 1024


def agreement(outputs: Mapping[str, Outputs], images: Split, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """How each backend compares with the first: accuracy [K], the largest difference of a score, and the images that
    leave at another exit or with another label under `thresholds`."""
    reference = next(iter(outputs.values()))
    rows, cut = np.arange(len(images)), np.array(thresholds)
    left = exit_of(reference.scores, cut)
    expected = reference.predictions[rows, left - 1]
    found = {}
    for name, each in outputs.items():
        exits = exit_of(each.scores, cut)
        labels = each.predictions[rows, exits - 1]
        found[name] = {
            "accuracy": (each.predictions == images.labels[:, None]).mean(axis=0).tolist(),
            "largest_difference": float(np.abs(each.scores - reference.scores).max()),
            "other_exits": int((exits != left).sum()),
            "other_labels": int((labels != expected).sum()),
            "point_accuracy": float((labels == images.labels).mean()),
        }
    return {"images": len(images), "thresholds": list(thresholds), "by_backend": found}


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


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    main()
