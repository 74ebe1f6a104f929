"""What a run leaves behind while it goes: a progress line on stderr, metrics as JSON lines, curves as PNG."""

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
