"""How fast a GPU trains and how much of the time it is busy, with and without compiling and capturing the step.

    python -m benchmarks.gpu_training --preset paper-s

Random images, so no data set is needed; the network and the recipe decide the cost. Every way first trains an epoch, in
which it compiles and captures, then whole epochs for at least --seconds. Prints a JSON line per way as it ends; the
figures include everything that an epoch does, but for the validation. Exit status 1 if a way fell back to another.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean, median
from typing import Any

import torch

from msmlp.model.backends.torch.devices import pick_device, pick_dtype
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import PRESETS, CascadeConfig
from msmlp.model.preprocess import Preprocess
from msmlp.model.training.batches import Arrays, normalizer
from msmlp.model.training.capture import as_cuda_graph
from msmlp.model.training.loop import Learner, train_epoch
from msmlp.model.training.recipes import RECIPES, Recipe

WAYS = {
    "plain": (False, False),
    "captured": (False, True),
    "compiled": (True, False),
    "compiled, captured": (True, True),
}
"""Whether a way compiles, and whether it captures."""
SAMPLE_MS = 100


def measure(
    config: CascadeConfig, recipe: Recipe, data: Arrays, seconds: float, *, compiles: bool, captures: bool
) -> dict[str, Any]:
    """Train for at least `seconds` → images/s of the epochs, and the share of the time that the GPU was busy.

    `busy` is None where nvidia-smi does not say, `fell_back` is what the training step complained of.
    """
    device = data.pixels.device
    torch.manual_seed(0)
    preprocess = Preprocess(size=config.image_size, mean=(0.5,) * 3, std=(0.25,) * 3)
    learner = Learner(
        Cascade(config).to(device),
        recipe,
        normalizer(preprocess, device),
        dtype=pick_dtype("auto", device),
        compiles=compiles,
        capture=as_cuda_graph if captures else None,
    )
    with _complaints() as said:
        start = time.monotonic()
        train_epoch(learner, data, 0, lambda *_: None)
        first = time.monotonic() - start
        speeds: list[float] = []
        with busy_samples(device) as samples:
            start = time.monotonic()
            while not speeds or time.monotonic() - start < seconds:
                speeds.append(train_epoch(learner, data, 1 + len(speeds), lambda *_: None)[1])
    return {
        "images_per_second": round(median(speeds)),
        "epochs": len(speeds),
        "first_epoch_seconds": round(first, 1),
        "busy": round(mean(samples), 3) if samples else None,
        "fell_back": said,
    }


@contextmanager
def busy_samples(device: torch.device) -> Iterator[list[float]]:
    """Afterwards, the share of the time with a kernel at work, in every SAMPLE_MS; none without a GPU."""
    samples: list[float] = []
    if device.type == "cpu":
        yield samples
        return
    # By name, as nvidia-smi numbers GPUs in another order than CUDA.
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    shown = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={SAMPLE_MS}")
    with subprocess.Popen(["nvidia-smi", which, *shown], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield samples
        finally:
            process.terminate()
            printed = process.communicate()[0].splitlines()
            samples += [int(line) / 100 for line in map(str.strip, printed) if line.isdigit()]


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """The warnings of our own modules while it lasts."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("msmlp")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def main() -> int:
    options = _options()
    config, device, fell_back = PRESETS[options.preset], pick_device(options.device), False
    recipe = RECIPES[options.recipe].model_copy(update={"batch_size": options.batch_size})
    size = config.image_size
    pixels = torch.randint(0, 256, (options.images, 3, size, size), dtype=torch.uint8)
    data = Arrays(pixels.to(device), (torch.arange(options.images) % config.classes).to(device))
    for way, (compiles, captures) in WAYS.items():
        if device.type == "cpu" and (compiles or captures):
            continue  # these are for GPUs
        row = measure(config, recipe, data, options.seconds, compiles=compiles, captures=captures)
        name = {"preset": options.preset, "recipe": options.recipe, "batch_size": options.batch_size, "way": way}
        print(json.dumps({**name, "device": str(device), "images": options.images, **row}), flush=True)
        fell_back |= bool(row["fell_back"])
    return int(fell_back)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="s")
    parser.add_argument("--recipe", choices=("paper", "best", "quick"), default="best")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--images", type=int, default=51_200, help="in an epoch")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5.0, help="the least for every way, after its first epoch")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
