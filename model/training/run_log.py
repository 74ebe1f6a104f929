"""Where a result comes from: device, commit, command."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from msmlp.model.data import Dataset, Split
from msmlp.model.data.dataset import split_digest
from msmlp.model.training.loop import Learner
from msmlp.model.training.recipes import ADDED_LATER, Recipe, TrainOptions

COMMIT = "GIT_COMMIT"
"""The environment's name for the commit of a copy that is no clone."""


def command_line() -> str:
    """The command that is running, as one would type it again."""
    return shlex.join(["msmlp", *sys.argv[1:]])


def device_name(device: torch.device) -> str:
    """A name for the record: the GPU's own, or `cpu` with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def git_commit() -> str | None:
    """The commit of this code, `+` when the tree differs from it; outside a clone what COMMIT says, if anything."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would look further up: a virtual environment may lie in another repository
        return os.environ.get(COMMIT)
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT)
    return described.stdout.strip()


# FROM model/training/run_log.py:
# What a run says of itself: to its own checkpoint, so that it is resumed as it was begun, and in what it leaves.


def setup_of(options: TrainOptions, learner: Learner, digest: str, images: int) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    teacher, plan = learner.teacher, learner.recipe
    # Where they say nothing they are left out, so that a run begun before they existed can go on.
    unused = {name for name in ADDED_LATER if getattr(plan, name) == Recipe.model_fields[name].default}
    unused |= {"distill_weight", "distill_temperature"} if teacher is None else set()
    setup = {
        "cascade": learner.model.config.model_dump_json(),
        "recipe": plan.model_dump_json(exclude=unused),
        "teacher": teacher.sha256 if teacher is not None else None,
        "seed": options.seed,
        "validation digest": digest,
        "number of training images": images,
    }
    if learner.start is not None:
        setup["init"] = learner.start.sha256
    return setup | ({"dtype": str(learner.dtype)} if learner.dtype != torch.float32 else {})


def training_record(
    options: TrainOptions,
    learner: Learner,
    dataset: Dataset,
    training: Split,
    validation: Split,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the manifest says of the training: enough to do it again."""
    recipe, teacher, start = learner.recipe, learner.teacher, learner.start
    return {
        "data": dataset.source,
        "images": len(training),
        "validation": {"seed": options.seed, "images": len(validation), "digest": split_digest(validation)},
        "recipe_name": options.recipe_name,
        "recipe": recipe.model_dump(mode="json"),
        "preset": options.preset,
        "teacher": {"name": teacher.name, "sha256": teacher.sha256} if teacher is not None else None,
        "init": {"name": start.name, "sha256": start.sha256} if start is not None else None,
        "seed": options.seed,
        "epochs": recipe.epochs,
        "device": device_name(learner.device),
        "dtype": str(learner.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "command": command_line(),
        "git_commit": learner.commit,
        "images_per_second": float(np.median([row["images_per_second"] for row in rows])) if rows else None,
    }


def results_of(accuracies: list[float], images: int) -> list[dict[str, Any]]:
    """Validation accuracy of every exit, with the number of images."""
    return [
        {"exit": k, "split": "val", "images": images, "accuracy": accuracy} for k, accuracy in enumerate(accuracies, 1)
    ]


# FROM model/training/run_log.py:
# What a run leaves behind while it goes: a progress line on stderr, metrics as JSON lines, curves as PNG.

METRICS = "metrics.jsonl"


class Journal:
    """Progress of one run of `epochs` epochs over `images` training images each."""

    def __init__(self, folder: Path, images: int, epochs: int, done: int) -> None:
        self.path = folder / METRICS
        self.rows = read_metrics(self.path)
        self.keep(done)
        self.bar = tqdm(
            total=images * epochs,
            initial=images * done,
            unit="img",
            file=sys.stderr,
            mininterval=1.0,
            dynamic_ncols=True,
        )

    def keep(self, done: int) -> None:
        """Drop what was written of epochs after `done`, which nothing can resume from: so a resumed run reads like an
        uninterrupted one."""
        self.rows = [row for row in self.rows if row["epoch"] <= done]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def tick(self, images: int, loss: float) -> None:
        """A few more images went by."""
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self.bar.update(images)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch ended: write its row, say its result."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        accuracies = " / ".join(f"{100 * a:.1f}" for a in row["val_accuracy"])
        speed = f"{row['images_per_second']:.0f} images/s"
        self.bar.write(
            f"epoch {row['epoch']}: loss {row['loss']:.3f}, val {accuracies} %, {speed}",
            file=sys.stderr,
        )

    def close(self) -> None:
        """End the progress line."""
        self.bar.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; none when it is not there. A torn last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss and every exit's validation accuracy against epochs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], color="black")
    left.set(xlabel="epoch", ylabel="training loss, sum over exits")
    for k in range(len(rows[0]["val_accuracy"]) if rows else 0):
        right.plot(epochs, [100 * row["val_accuracy"][k] for row in rows], label=f"exit {k + 1}")
    right.set(xlabel="epoch", ylabel="validation accuracy, %")
    if rows:
        right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
