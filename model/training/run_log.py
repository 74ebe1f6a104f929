"""What a run records: progress on stderr, `metrics.jsonl`, curves, and metadata for the manifest."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from msmlp.model.data import Dataset, Split
from msmlp.model.data.dataset import Partition
from msmlp.model.text import command_line
from msmlp.model.training.loop import Learner
from msmlp.model.training.recipes import TrainOptions
from msmlp.model.weights.calibration import promise, standard_error
from msmlp.model.weights.files import write_atomically

COMMIT = "GIT_COMMIT"
"""The environment variable that names the commit where the code is not a clone."""

GIT_SECONDS = 30.0


class MetricsLogger:
    """Logs a run of `epochs` epochs of `images` images, of which `done` epochs are kept from an earlier process."""

    def __init__(self, folder: Path, images: int, epochs: int, done: float) -> None:
        self.path = folder / "metrics.jsonl"
        # Rows after the last epoch in a checkpoint are written again.
        self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= done]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self.bar = tqdm(
            total=images * epochs,
            initial=round(images * done),
            unit="img",
            file=sys.stderr,
            mininterval=1.0,
            dynamic_ncols=True,
        )

    def tick(self, images: int, loss: float) -> None:
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self.bar.update(images)

    def log_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        accuracies = " / ".join(f"{100 * a:.1f}" for a in row["val_accuracy"])
        speed = f"{row['images_per_second']:.0f} images/s"
        line = f"epoch {row['epoch']}: loss {row['loss']:.3f}, val accuracy {accuracies} %, {speed}"
        self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, none if it does not exist. An incomplete last line is left out."""
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], color="black")
    left.set(xlabel="epoch", ylabel="training loss (sum over exits)")
    for k in range(len(rows[0]["val_accuracy"]) if rows else 0):
        right.plot(epochs, [100 * row["val_accuracy"][k] for row in rows], label=f"exit {k + 1}")
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    if rows:
        right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, picture.getvalue())


def run_metadata(
    options: TrainOptions,
    learner: Learner,
    dataset: Dataset,
    partition: Partition,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """The manifest's `training`: enough to repeat the run."""
    recipe, teacher, initial = learner.recipe, learner.teacher, learner.initial
    validation, audit = partition.digests
    return {
        "data": dataset.source,
        "images": len(partition.training),
        "validation": {"seed": options.seed, "images": len(partition.validation), "digest": validation},
        "audit": {"seed": options.seed, "images": len(partition.audit), "digest": audit}
        if partition.audit is not None
        else {"images": 0, "reason": partition.no_audit},
        "recipe_name": options.recipe_name,
        "recipe": recipe.model_dump(mode="json"),
        "preset": options.preset,
        "teacher": {"name": teacher.name, "sha256": teacher.sha256} if teacher is not None else None,
        "init": {
            "name": initial.name,
            "sha256": initial.sha256,
            "leak": initial.leak_into(dataset, partition),
            "new_heads": initial.classes != dataset.classes,
            "frozen_stages": options.freeze,
        }
        if initial is not None
        else None,
        "seed": options.seed,
        "epochs": recipe.epochs,
        "device": device_name(learner.device),
        "dtype": str(learner.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "command": command_line(),
        "git_commit": learner.commit,
        "images_per_second": float(np.median([row["images_per_second"] for row in rows])) if rows else None,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


def exit_results(
    accuracies: list[float], validation: Split, audited: list[float], audit: Split | None
) -> list[dict[str, Any]]:
    """The manifest's `results`: the accuracy of every exit on the validation images, then on the audit images, if any,
    beside the former."""
    results: list[dict[str, Any]] = [
        {"exit": k, "split": "val", "images": len(validation), "accuracy": accuracy}
        for k, accuracy in enumerate(accuracies, 1)
    ]
    if audit is None:
        return results

    def measured(accuracy: float, images: int) -> tuple[float, float]:
        return accuracy, standard_error(round(accuracy * images), images)

    for k, (expected, reached) in enumerate(zip(accuracies, audited, strict=True), 1):
        found = promise(*measured(expected, len(validation)), *measured(reached, len(audit)))
        results.append({"exit": k, "split": "audit", "images": len(audit), **found.model_dump()})
    return results


def git_commit() -> str | None:
    """The commit of this code, with `+` if the tree has changed since; outside a clone the value of COMMIT, if set."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # else git would find a repository that merely contains the environment
        return os.environ.get(COMMIT)
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT)
    return described.stdout.strip()
