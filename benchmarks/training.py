"""The training loop against a plain PyTorch loop with the same network, data and recipe, in one run.

    python -m benchmarks.training --data .data/cifar-10-batches-py

The plain loop is what a researcher would write for one experiment: tensors in memory, every batch augmented as it is
needed, torch's own optimizers. Both take turns within every round, an epoch each, and the one that begins alternates.
Prints one JSON document: for each number of threads and dtype the images/s of both (medians of the rounds), the median
and the least of the rounds' ratios, product ÷ plain, and the median ratio of images per second of CPU time, which tells
more with one thread on a busy machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.backends import processor
from msmlp.model.data import load_dataset
from msmlp.model.errors import ConfigError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, override, parse_assignments
from msmlp.model.training.batches import Arrays
from msmlp.model.training.loop import Learner, train_epoch
from msmlp.model.training.optim import lr_factor
from msmlp.model.training.recipes import Recipe, TrainOptions, configure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
PLAIN_RECIPE = {
    "augment": ("none", "crop-flip"),
    "erasing": (0,),
    "mixup": (0,),
    "cutmix": (0,),
    "epochs_per_view": (1,),
}
"""What a recipe must have for the plain loop, which leaves the rest to the product."""

Epoch = Callable[[int], None]
"""Trains epoch `n` (0-based)."""


def main() -> None:
    options = _options()
    changes = {"augment": "crop-flip", "erasing": 0, "mixup": 0, "cutmix": 0, **parse_assignments(options.set)}
    given = TrainOptions(options.data, options.preset, Path(), recipe=options.recipe, changes=changes)
    network, recipe = configure(given)
    data = load_dataset(options.data, network.image_size)
    if not isinstance(network, CascadeConfig):
        raise ConfigError("preset: expected a cascade")
    config = override(network, {"classes": len(data.classes)})
    pixels = torch.from_numpy(data.train.pixels[: options.images]).permute(0, 3, 1, 2).contiguous()
    arrays = Arrays(pixels, torch.from_numpy(data.train.labels[: options.images]))
    document: dict[str, Any] = {
        "command": f"python -m benchmarks.training {' '.join(sys.argv[1:])}",
        "machine": processor(),
        "load_average": round(os.getloadavg()[0], 2),
        "images": len(arrays.labels),
        "rounds": options.rounds,
        "batch_size": recipe.batch_size,
        "runs": [],
    }
    for threads in options.threads:
        for dtype in options.dtypes:
            row: dict[str, Any] = {"threads": threads, "dtype": dtype}
            row |= compare(config, recipe, arrays, threads, dtype, options.rounds)
            sys.stderr.write(f"{row}\n")  # an interrupted run has said what it found
            document["runs"].append(row)
    print(json.dumps(document, indent=1))


def compare(
    config: CascadeConfig, recipe: Recipe, data: Arrays, threads: int, dtype: str, rounds: int
) -> dict[str, float]:
    """Images/s of both loops and their ratio: medians of `rounds`, after one that does not count."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Cascade(config)
    loops = {
        "product": product(deepcopy(model), recipe, data, DTYPES[dtype]),
        "plain": plain(deepcopy(model), recipe, data, DTYPES[dtype]),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        for name in sorted(loops, reverse=bool(number % 2)):
            start = time.perf_counter(), time.process_time()
            loops[name](number)
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    images = len(data.labels) // recipe.batch_size * recipe.batch_size
    ratios = [
        [b / a for a, b in zip(*pair, strict=True)] for pair in zip(times["product"], times["plain"], strict=True)
    ]
    wall, cpu = zip(*ratios[1:], strict=True)
    speeds = {name: round(images / statistics.median(wall for wall, _ in each[1:])) for name, each in times.items()}
    medians = {"ratio": round(statistics.median(wall), 3), "cpu_ratio": round(statistics.median(cpu), 3)}
    return {**speeds, **medians, "least": round(min(wall), 3)}


def product(model: Cascade, recipe: Recipe, data: Arrays, dtype: torch.dtype) -> Epoch:
    """The loop of `msmlp train`."""
    learner = Learner(model, recipe, _normalize, dtype=dtype)
    return lambda number: _seeded(number, lambda: train_epoch(learner, data, number, lambda *_: None))


def plain(model: Cascade, recipe: Recipe, data: Arrays, dtype: torch.dtype) -> Epoch:
    """The same, written out; ConfigError for a recipe that it does not know how to follow."""
    for field, allowed in PLAIN_RECIPE.items():
        if getattr(recipe, field) not in allowed:
            raise ConfigError(f"{field}: expected one of {', '.join(map(str, allowed))}")
    loop = Plain(model, recipe, dtype)
    return lambda number: _seeded(number, lambda: loop.epoch(data, number))


class Plain:
    def __init__(self, model: Cascade, recipe: Recipe, dtype: torch.dtype) -> None:
        self.model, self.recipe, self.dtype = model, recipe, dtype
        self.optimizers = _optimizers(model, recipe)
        self.average = deepcopy(model).requires_grad_(False) if recipe.ema else None

    def epoch(self, data: Arrays, number: int) -> None:
        size, count = self.recipe.batch_size, len(data.labels)
        order, steps = torch.randperm(count), count // size
        self.model.train()
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            images = data.pixels[rows].float() / 255
            if self.recipe.augment == "crop-flip":
                images = crop_flip(images, images.shape[-1] // 8)
            self.step(number * steps + step, steps, _normalize(images), data.labels[rows])

    def step(self, done: int, steps: int, images: Tensor, labels: Tensor) -> None:
        recipe = self.recipe
        for each in self.optimizers:
            for group in each.param_groups:
                group["lr"] = recipe.lr * lr_factor(recipe, done / steps)
            each.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            exits = self.model(images)
        losses = [F.cross_entropy(z.float(), labels, label_smoothing=recipe.label_smoothing) for z in exits]
        torch.stack(losses).sum().backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        for each in self.optimizers:
            each.step()
        if self.average is not None:
            share = 1 - min(recipe.ema, (1 + done) / (10 + done))
            with torch.no_grad():
                for ours, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    ours.lerp_(theirs, share)


def _seeded(number: int, train: Callable[[], Any]) -> None:
    torch.manual_seed(number)
    train()


def _optimizers(model: Cascade, recipe: Recipe) -> list[torch.optim.Optimizer]:
    if recipe.optimizer == "sgd":
        options = recipe.model_dump(include={"lr", "momentum", "weight_decay", "nesterov"})
        return [torch.optim.SGD(model.parameters(), **options)]
    named = dict(model.named_parameters())
    hidden = [name for name in named if named[name].dim() == 2 and ".blocks." in name]
    turned = hidden if recipe.optimizer == "muon" else []
    decayed = [p for name, p in named.items() if p.dim() > 1 and name not in turned]
    vectors = [p for p in named.values() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": vectors, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)]
    if turned:
        matrices = [named[name] for name in turned]
        decay = recipe.weight_decay
        made.append(torch.optim.Muon(matrices, recipe.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return made


def crop_flip(images: Tensor, pad: int) -> Tensor:
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, (pad,) * 4).permute(0, 2, 3, 1)
    top, left = torch.randint(2 * pad + 1, (2, count, 1))
    places = torch.arange(size)
    mirrored = torch.rand(count, 1) < 0.5
    rows, columns = top + places, left + torch.where(mirrored, places.flip(0), places)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _normalize(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="its training images are used")
    parser.add_argument("--preset", default="s")
    parser.add_argument("--recipe", default="quick", help="without mixing, and with crops and mirror images only")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved; medians are reported")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `msmlp train`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
